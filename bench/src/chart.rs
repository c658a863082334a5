//! Lines over two logarithmic axes, as SVG.

use crate::figures::Thousands;
use crate::Result;
use plotters::coord::combinators::WithKeyPoints;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// What a line looks like. No two look alike without colours either.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    pub color: RGBColor,
    pub marker: Marker,
}

/// What is at the points of a line.
#[derive(Debug, Clone, Copy)]
pub enum Marker {
    Disc,
    Square,
    Triangle,
    Cross,
    Ring,
}

/// One line.
pub struct Line {
    pub name: &'static str,
    pub look: Look,
    /// None of their numbers is 0 or less, which have no place on these axes.
    pub points: Vec<(f64, f64)>,
}

/// All of them, and what is written beside.
pub struct Chart {
    pub title: &'static str,
    pub across: &'static str,
    pub up: &'static str,
    /// In the order of the legend.
    pub lines: Vec<Line>,
}

/// Where lines are drawn, with an axis on two sides.
type Grid<'a, 'svg> = ChartContext<'a, SVGBackend<'svg>, Cartesian2d<Axis, Axis>>;
type Axis = WithKeyPoints<LogCoord<f64>>;
type Area<'svg> = DrawingArea<SVGBackend<'svg>, Shift>;

const SIZE: (u32, u32) = (840, 520);
const STROKE: u32 = 2;
const MARKER: i32 = 5;
const LEGEND_LINE: i32 = 24;
const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);

impl Chart {
    /// Draws it, on white: a page may be dark.
    pub fn svg(&self) -> Result<String> {
        let (mut columns, heights): (Vec<f64>, Vec<f64>) =
            self.lines.iter().flat_map(|line| line.points.iter().copied()).unzip();
        columns.sort_by(f64::total_cmp);
        columns.dedup();
        let rows = steps_around(&heights);
        let ([first, .., last], [low, .., high]) = (columns.as_slice(), rows.as_slice()) else {
            return Err("too little was measured".into());
        };
        // A little room, that no marker is cut off.
        let across = (first / 1.25..last * 1.25).log_scale();
        let up = (*low..*high).log_scale();

        let mut svg = String::new();
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut grid = ChartBuilder::on(&area)
            .margin(16)
            .margin_right(28)
            .caption(self.title, ("sans-serif", 22).with_color(INK))
            .x_label_area_size(58)
            .y_label_area_size(72)
            .build_cartesian_2d(
                across.with_key_points(columns.clone()),
                up.with_key_points(rows.clone()),
            )?;
        self.draw_axes(&mut grid)?;
        self.draw_lines(&area, &mut grid)?;
        self.draw_legend(&area, &grid)?;
        area.present()?;
        drop((grid, area)); // They borrow it.
        Ok(svg)
    }

    fn draw_axes(&self, grid: &mut Grid<'_, '_>) -> Result<()> {
        grid.configure_mesh()
            .bold_line_style(GRID)
            .axis_style(INK)
            .label_style(("sans-serif", 17).with_color(INK))
            .axis_desc_style(("sans-serif", 18).with_color(INK))
            .x_label_formatter(&|count| Thousands(count).to_string())
            .y_label_formatter(&f64::to_string)
            .x_desc(self.across)
            .y_desc(self.up)
            .draw()?;
        Ok(())
    }

    fn draw_lines(&self, area: &Area<'_>, grid: &mut Grid<'_, '_>) -> Result<()> {
        for Line { look, points, .. } in &self.lines {
            let style = look.color.stroke_width(STROKE);
            grid.draw_series(LineSeries::new(points.iter().copied(), style))?;
        }
        for Line { look, points, .. } in &self.lines {
            for point in points {
                look.draw_marker(area, grid.backend_coord(point))?;
            }
        }
        Ok(())
    }

    /// In the upper left corner, where lines that rise leave room.
    fn draw_legend(&self, area: &Area<'_>, grid: &Grid<'_, '_>) -> Result<()> {
        let (left, top) = grid.plotting_area().get_base_pixel();
        let (left, top) = (left + 14, top + 14);
        // No font is at hand to measure with: room for the widest.
        let longest = self.lines.iter().map(|line| line.name.len()).max().unwrap_or_default();
        let (letters, lines) = (i32::try_from(longest)?, i32::try_from(self.lines.len())?);
        let corners = [(left, top), (left + 55 + 9 * letters, top + LEGEND_LINE * lines + 10)];
        area.draw(&Rectangle::new(corners, WHITE.filled()))?;
        area.draw(&Rectangle::new(corners, GRID))?;
        let text = TextStyle::from(("sans-serif", 18)).color(&INK);
        let text = text.pos(Pos::new(HPos::Left, VPos::Center));
        for (Line { name, look, .. }, line) in self.lines.iter().zip(0..) {
            let (left, y) = (left + 10, top + 5 + LEGEND_LINE * line + LEGEND_LINE / 2);
            let style = look.color.stroke_width(STROKE);
            area.draw(&PathElement::new([(left, y), (left + 32, y)], style))?;
            look.draw_marker(area, (left + 16, y))?;
            area.draw(&Text::new(*name, (left + 42, y), text.clone()))?;
        }
        Ok(())
    }
}

impl Look {
    fn draw_marker(self, area: &Area<'_>, (x, y): (i32, i32)) -> Result<()> {
        let Self { color, marker } = self;
        match marker {
            Marker::Disc => area.draw(&Circle::new((x, y), MARKER, color.filled()))?,
            Marker::Square => {
                let corners = [(x - MARKER, y - MARKER), (x + MARKER, y + MARKER)];
                area.draw(&Rectangle::new(corners, color.filled()))?;
            }
            Marker::Triangle => {
                area.draw(&TriangleMarker::new((x, y), MARKER + 2, color.filled()))?;
            }
            Marker::Cross => area.draw(&Cross::new((x, y), MARKER, color.stroke_width(STROKE)))?,
            Marker::Ring => {
                // The line behind it is not to be seen through it.
                area.draw(&Circle::new((x, y), MARKER, WHITE.filled()))?;
                area.draw(&Circle::new((x, y), MARKER, color.stroke_width(STROKE)))?;
            }
        }
        Ok(())
    }
}

/// The numbers 1, 2, 5, 10, 20 … from the last that is not above any of `values` to the
/// first that is not below any.
fn steps_around(values: &[f64]) -> Vec<f64> {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = values.iter().copied().fold(0.0, f64::max);
    let steps: Vec<f64> =
        (-3..9).flat_map(|power| [1.0, 2.0, 5.0].map(|step| step * 10_f64.powi(power))).collect();
    let start = steps.iter().rposition(|&step| step <= least);
    let end = steps.iter().position(|&step| step >= greatest);
    match (start, end) {
        (Some(start), Some(end)) if start < end => steps[start..=end].to_vec(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        let look = Look { color: BLACK, marker: Marker::Ring };
        Chart { title: "T", across: "A", up: "U", lines: vec![Line { name: "N", look, points }] }
    }

    #[test]
    fn everything_is_written_on_white() {
        let svg = chart(vec![(1.0, 1.5), (19_000.0, 40.0)]).svg().unwrap();
        for text in ["T", "A", "U", "N", "19,000", "50"] {
            assert!(svg.lines().any(|line| line == text), "{text}");
        }
        let background = svg.lines().find(|line| line.starts_with("<rect")).unwrap();
        assert!(background.contains("fill=\"#FFFFFF\""), "{background}");
        assert!(svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn nothing_measured_is_no_chart() {
        assert!(chart(vec![]).svg().is_err());
    }

    #[test]
    fn steps_enclose_all_values() {
        assert_eq!(steps_around(&[1.3, 2.0, 36.7]), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]);
        assert_eq!(steps_around(&[0.7, 5.0]), [0.5, 1.0, 2.0, 5.0]);
    }
}

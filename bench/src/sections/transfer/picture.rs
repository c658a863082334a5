//! The times of all transfers in one picture.

use super::AtSize;
use crate::bench::say;
use crate::chart::{Chart, Line, Look, Marker};
use crate::figures::{Sample, Thousands};
use crate::report::Picture;
use crate::transfers::Way;
use plotters::style::RGBColor;

const FILE: &str = "benchmarks-transfer.svg";

/// One line of the picture.
struct Curve {
    name: &'static str,
    look: Look,
    of: fn(&AtSize) -> &Sample,
}

/// Slowest first, as the lines lie. The colours are Okabe and Ito's, which most people can
/// tell apart; the limits are grey.
const CURVES: [Curve; 5] = [
    Curve {
        name: "s6",
        look: Look { color: RGBColor(0xd5, 0x5e, 0x00), marker: Marker::Triangle },
        of: |at| &at.ways[Way::S6].measured,
    },
    Curve {
        name: "ours, relayed",
        look: Look { color: RGBColor(0x00, 0x72, 0xb2), marker: Marker::Square },
        of: |at| &at.ways[Way::Relayed].measured,
    },
    Curve {
        name: "raw two hops",
        look: Look { color: RGBColor(0x66, 0x66, 0x66), marker: Marker::Cross },
        of: |at| &at.raw.two_hops,
    },
    Curve {
        name: "ours, direct",
        look: Look { color: RGBColor(0x00, 0x9e, 0x73), marker: Marker::Disc },
        of: |at| &at.ways[Way::Direct].measured,
    },
    Curve {
        name: "raw one hop",
        look: Look { color: RGBColor(0x99, 0x99, 0x99), marker: Marker::Ring },
        of: |at| &at.raw.one_hop,
    },
];

/// The picture, and the Markdown that shows it.
pub fn draw(sizes: &[AtSize]) -> (String, Option<Picture>) {
    let line = |Curve { name, look, of }| {
        let point = |at: &AtSize| Some((f64::from(at.size), of(at).median()?));
        Line { name, look, points: sizes.iter().filter_map(point).collect() }
    };
    let chart = Chart {
        title: "One transfer, from start to end of the process (median)",
        across: "number of descriptors (logarithmic)",
        up: "time in milliseconds (logarithmic)",
        lines: CURVES.map(line).into(),
    };
    match chart.svg() {
        Ok(svg) => {
            (format!("![{}]({FILE})\n", in_words(&chart)), Some(Picture { file: FILE, svg }))
        }
        // The tables are worth having all the same.
        Err(error) => {
            say(&format!("transfer: no picture: {error}"));
            (String::new(), None)
        }
    }
}

/// For those who do not see it.
fn in_words(Chart { lines, .. }: &Chart) -> String {
    let ends: Vec<_> = lines
        .iter()
        .filter_map(|Line { name, points, .. }| {
            let ((few, fast), (many, slow)) = (points.first()?, points.last()?);
            let (few, many) = (Thousands(few), Thousands(many));
            Some(format!("{name} from {fast:.1} ms for {few} to {slow:.1} ms for {many}"))
        })
        .collect();
    format!(
        "Lines of the time of one transfer over the number of descriptors, both axes \
         logarithmic: {}",
        ends.join("; ")
    )
}

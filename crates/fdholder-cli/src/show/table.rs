//! Tables of text.

use crate::show::terminal::{harmless, Screen, Style};

/// What stands between two columns.
const GAP: usize = 2;

/// A column is not made narrower than this for want of room.
const WIDTH_MIN: usize = 8;

/// A table: a head, and rows of as many cells.
#[derive(Debug)]
pub struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

/// A cell: a text, and how it looks.
#[derive(Debug, Clone, Default)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub fn styled(text: impl Into<String>, style: Style) -> Self {
        Self { text: harmless(text.into()), style }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(text, Style::Plain)
    }
}

impl Table {
    pub fn new(head: impl Into<Vec<&'static str>>) -> Self {
        Self { head: head.into(), rows: Vec::new() }
    }

    /// Adds a row, which has as many cells as the head.
    pub fn row(&mut self, cells: impl Into<Vec<Cell>>) {
        let cells = cells.into();
        debug_assert_eq!(cells.len(), self.head.len());
        self.rows.push(cells);
    }

    /// As text: columns as wide as their widest cell; on a terminal that is too narrow for
    /// that the widest columns give way.
    pub fn to_text(&self, screen: Screen) -> String {
        let widths = self.widths(screen.size.map(|(columns, _)| columns));
        let head: Vec<_> = self.head.iter().map(|&it| Cell::styled(it, Style::Head)).collect();
        let mut text = String::new();
        for row in std::iter::once(&head).chain(&self.rows) {
            let mut line = String::new();
            let mut owed = 0;
            for (cell, &width) in row.iter().zip(&widths) {
                let shown = cut(&cell.text, width);
                // Blanks are written before what follows them: none end a line.
                line.extend(std::iter::repeat_n(' ', if shown.is_empty() { 0 } else { owed }));
                owed = if shown.is_empty() { owed } else { 0 } + width - length(&shown) + GAP;
                line.push_str(&screen.styled(cell.style, &shown));
            }
            text.push_str(&line);
            text.push('\n');
        }
        text
    }

    fn widths(&self, room: Option<usize>) -> Vec<usize> {
        let of = |column: usize| {
            let cells = self.rows.iter().map(|row| length(&row[column].text));
            cells.max().unwrap_or(0).max(length(self.head[column]))
        };
        let mut widths: Vec<_> = (0..self.head.len()).map(of).collect();
        let Some(room) = room else { return widths };
        let gaps = GAP * widths.len().saturating_sub(1);
        while widths.iter().sum::<usize>() + gaps > room {
            let Some(widest) = widths.iter_mut().max() else { break };
            if *widest <= WIDTH_MIN {
                break;
            }
            *widest -= 1;
        }
        widths
    }
}

fn length(text: &str) -> usize {
    text.chars().count()
}

/// Leaves out the middle of what is too long: paths and identifiers differ at their ends.
fn cut(text: &str, width: usize) -> String {
    let letters: Vec<_> = text.chars().collect();
    if letters.len() <= width {
        return text.to_owned();
    }
    let tail = width.saturating_sub(1) / 2;
    let head = width.saturating_sub(1) - tail;
    let mut shown: String = letters[..head].iter().collect();
    shown.push('…');
    shown.extend(&letters[letters.len() - tail..]);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Screen = Screen { size: None, colours: false };

    fn table() -> Table {
        let mut table = Table::new(["ID", "ADDRESS", "AGE"]);
        table.row([Cell::from("web"), "127.0.0.1:80".into(), "5 s".into()]);
        table.row([Cell::from("a-rather-long-identifier"), Cell::default(), "1 d".into()]);
        table.row([Cell::from("last"), Cell::default(), Cell::default()]);
        table
    }

    #[test]
    fn columns_are_aligned_and_no_line_ends_in_blanks() {
        assert_eq!(
            table().to_text(FILE),
            "ID                        ADDRESS       AGE\n\
             web                       127.0.0.1:80  5 s\n\
             a-rather-long-identifier                1 d\n\
             last\n"
        );
    }

    #[test]
    fn what_is_too_wide_gives_way_in_the_middle() {
        let screen = Screen { size: Some((31, 24)), ..FILE };
        assert_eq!(
            table().to_text(screen),
            "ID            ADDRESS       AGE\n\
             web           127.0.0.1:80  5 s\n\
             a-rath…ifier                1 d\n\
             last\n"
        );
    }

    #[test]
    fn colours_take_no_room() {
        let screen = Screen { colours: true, ..FILE };
        let mut table = Table::new(["A", "B"]);
        table.row([Cell::styled("x", Style::Good), "y".into()]);
        assert_eq!(
            table.to_text(screen),
            "\x1b[1mA\x1b[0m  \x1b[1mB\x1b[0m\n\x1b[32mx\x1b[0m  y\n"
        );
    }
}

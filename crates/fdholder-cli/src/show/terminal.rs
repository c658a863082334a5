//! What a terminal is asked, and told.

use std::io::{self, IsTerminal, Write};

/// How to print.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    /// Columns and lines of the terminal; `None` when it is none, and nothing is cut.
    pub size: Option<(usize, usize)>,
    /// Whether there are to be colours.
    pub colours: bool,
}

impl Screen {
    /// Standard output. No colours where `NO_COLOR` is set, or the terminal is a dumb one.
    pub fn stdout() -> Self {
        let stdout = io::stdout();
        let is_terminal = stdout.is_terminal();
        let size = terminal_size::terminal_size_of(stdout).filter(|_| is_terminal);
        let size = size.map(|(width, height)| (width.0.into(), height.0.into()));
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let able = std::env::var_os("TERM").is_some_and(|term| term != "dumb");
        Self { size, colours: is_terminal && wanted && able }
    }

    /// A text in a style, or as it is.
    pub fn styled(self, style: Style, text: &str) -> String {
        let code = match style {
            Style::Plain => return text.to_owned(),
            _ if !self.colours => return text.to_owned(),
            Style::Head => "1",
            Style::Good => "32",
            Style::Soon => "33",
            Style::Faint => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// Begins a new picture in the place of the last one, if it is a terminal.
    pub fn begin_again(self) -> io::Result<()> {
        if self.size.is_none() {
            return Ok(());
        }
        io::stdout().write_all(b"\x1b[H\x1b[J")
    }
}

/// What others have written, as it can be shown: no control characters, which a terminal would
/// act upon, and none that turn the direction of a text or end a line.
pub fn harmless(text: String) -> String {
    let is_harmful = |letter: char| {
        let turns = matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}');
        let ends = matches!(letter, '\u{2028}' | '\u{2029}' | '\u{2066}'..='\u{2069}');
        letter.is_control() || turns || ends
    };
    if !text.contains(is_harmful) {
        return text;
    }
    let escaped = |letter: char| {
        if is_harmful(letter) {
            letter.escape_default().to_string()
        } else {
            letter.to_string()
        }
    };
    text.chars().map(escaped).collect()
}

/// What a text is to look like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Style {
    #[default]
    Plain,
    Head,
    Good,
    Soon,
    Faint,
}

//! What a section reports.

/// Markdown, and the picture it refers to.
#[derive(Debug)]
pub struct Report {
    pub text: String,
    pub picture: Option<Picture>,
}

/// A file beside the document.
#[derive(Debug)]
pub struct Picture {
    /// Its name, without a folder.
    pub file: &'static str,
    pub svg: String,
}

impl From<String> for Report {
    fn from(text: String) -> Self {
        Self { text, picture: None }
    }
}

//! The document that quotes the figures.

use crate::report::Picture;
use crate::Result;
use std::fs;
use std::path::Path;

const BEGIN: &str = "<!-- measured: begin -->";
const END: &str = "<!-- measured: end -->";

/// Whether `file` has a place for the tables.
pub fn check(file: &Path) -> Result<()> {
    with_tables(&read(file)?, "").map(drop).map_err(|problem| at(file, &problem))
}

/// Puts the tables into `file`, in the place of those of an earlier run, and the pictures
/// they refer to beside it.
pub fn write(file: &Path, tables: &str, pictures: &[Picture]) -> Result<()> {
    // Read afresh: someone may have edited it while we measured.
    let text = with_tables(&read(file)?, tables).map_err(|problem| at(file, &problem))?;
    fs::write(file, text).map_err(|error| at(file, &error))?;
    for Picture { file: name, svg } in pictures {
        let picture = file.with_file_name(name);
        fs::write(&picture, svg).map_err(|error| at(&picture, &error))?;
    }
    Ok(())
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).map_err(|error| at(file, &error))
}

fn at(file: &Path, problem: &dyn std::fmt::Display) -> Box<dyn std::error::Error> {
    format!("{}: {problem}", file.display()).into()
}

fn with_tables(text: &str, tables: &str) -> std::result::Result<String, String> {
    let line = |marker: &str, after: usize| {
        let lines = text.split_inclusive('\n').scan(0, |end, line| {
            let start = *end;
            *end += line.len();
            Some((start, *end, line))
        });
        lines
            .filter(|&(start, _, _)| start >= after)
            .find(|(_, _, line)| line.trim_end() == marker)
            .map(|(start, end, _)| (start, end))
            .ok_or_else(|| format!("there is no line {marker}"))
    };
    let (_, begin) = line(BEGIN, 0)?;
    let (end, _) = line(END, begin)?;
    Ok(format!("{}\n{}\n{}", &text[..begin], tables.trim_end(), &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_take_the_place_of_earlier_ones() {
        let text = "a\n<!-- measured: begin -->\nold\n<!-- measured: end -->\nb\n";
        let first = with_tables(text, "new\n").unwrap();
        assert_eq!(first, "a\n<!-- measured: begin -->\n\nnew\n<!-- measured: end -->\nb\n");
        assert_eq!(with_tables(&first, "new\n").unwrap(), first);
    }

    #[test]
    fn pictures_lie_beside_the_document() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("document.md");
        fs::write(&file, "<!-- measured: begin -->\n<!-- measured: end -->\n").unwrap();
        let picture = Picture { file: "picture.svg", svg: "<svg/>".to_owned() };
        write(&file, "![words](picture.svg)\n", &[picture]).unwrap();
        assert!(read(&file).unwrap().contains("](picture.svg)"));
        assert_eq!(fs::read_to_string(folder.path().join("picture.svg")).unwrap(), "<svg/>");
    }

    #[test]
    fn both_markers_are_needed_in_their_order() {
        assert!(with_tables("<!-- measured: begin -->\n", "").is_err());
        let reversed = "<!-- measured: end -->\n<!-- measured: begin -->\n";
        assert!(with_tables(reversed, "").is_err());
        assert!(with_tables("x <!-- measured: begin -->\n<!-- measured: end -->\n", "").is_err());
    }
}

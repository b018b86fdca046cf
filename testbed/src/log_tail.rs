//! The end of a server's log, for error messages.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

const LINES: usize = 12;
const BYTES: u64 = 64 * 1024;
const LINE_CHARS: usize = 400;

/// The last lines of the log, and before them the last lines that report an error.
pub(crate) fn tail(path: &Path) -> String {
    let text = match read_end(path) {
        Ok(text) => text,
        Err(error) => return format!("(no log at {}: {error})", path.display()),
    };
    let lines: Vec<&str> = text.lines().collect();
    let (earlier, last) = lines.split_at(lines.len().saturating_sub(LINES));
    let errors: Vec<&&str> = earlier.iter().filter(|line| reports_error(line)).collect();
    let errors = &errors[errors.len().saturating_sub(LINES)..];
    let mut out = format!("end of {}:", path.display());
    for line in errors.iter().copied().chain(last) {
        out.push_str("\n  ");
        out.extend(line.chars().take(LINE_CHARS));
    }
    out
}

/// JSON log lines (4.4 and later) and the plain ones before them.
fn reports_error(line: &str) -> bool {
    line.contains(r#""s":"E""#) || line.contains(r#""s":"F""#) || line.contains(" E ") || line.contains(" F ")
}

fn read_end(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

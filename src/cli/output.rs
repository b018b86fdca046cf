//! The only place that writes to the terminal. A reader that went away (`| head`) is not an error.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use crate::telemetry::log_writer::LogWriter;

/// Prints an answer as one JSON document.
pub(super) fn json(value: &serde_json::Value) {
    let _ = writeln!(std::io::stdout(), "{value:#}");
}

/// Prints an answer as one line of JSON.
pub(super) fn json_line(value: &serde_json::Value) {
    let _ = writeln!(std::io::stdout(), "{value}");
}

/// Prints text for people.
pub(super) fn text(text: &str) {
    let _ = writeln!(std::io::stdout(), "{}", clean(text.trim_end()));
}

/// Prints a page that the server has made.
pub(super) fn page(html: &str) {
    let _ = write!(std::io::stdout(), "{html}");
}

/// Tells what went wrong.
pub(super) fn error(text: &str) {
    // Whoever reads may have stopped, and must not keep the program from ending.
    if let Ok(mut out) = LogWriter::start(std::io::stderr()) {
        let _ = writeln!(out, "{}", clean(text));
        out.flush_within(Duration::from_secs(1));
    }
}

/// Shows a line that the next one replaces, if somebody is looking; else one line after the other.
pub(super) fn moving_line(line: &str) {
    let mut out = std::io::stdout();
    let _ = if out.is_terminal() {
        // Without wrapping: `\r` would not find back from the second row of a narrow terminal.
        write!(out, "\r\x1b[2K\x1b[?7l{}\x1b[?7h", clean(line)).and_then(|()| out.flush())
    } else {
        writeln!(out, "{}", clean(line))
    };
}

/// Ends a [`moving_line`].
pub(super) fn end_moving_line() {
    let mut out = std::io::stdout();
    if out.is_terminal() {
        let _ = writeln!(out);
    }
}

/// Keys and error messages come from the data: what they hold must not steer the terminal.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_does_not_steer_the_terminal() {
        assert_eq!(clean("a\x1b[2Jb\nc\u{9b}"), "a\u{fffd}[2Jb\nc\u{fffd}");
    }
}

//! What the terminal shows. Without a terminal: plain lines.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;

/// How often the live line is written where lines cannot be overwritten.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// The terminal.
pub(crate) struct Screen {
    start: Instant,
    live: Option<Live>,
    colors: bool,
    last_plain: Mutex<Instant>,
}

struct Live {
    all: MultiProgress,
    line: ProgressBar,
    copy: Mutex<Option<ProgressBar>>,
}

fn style(template: &str) -> ProgressStyle {
    let plain = ProgressStyle::default_bar();
    plain.clone().template(template).unwrap_or(plain).progress_chars("━╸─")
}

impl Screen {
    pub(crate) fn new(start: Instant) -> Self {
        let is_terminal = std::io::stdout().is_terminal();
        let live = is_terminal.then(|| {
            let all = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
            let line = all.add(ProgressBar::new_spinner().with_style(style("  {spinner} {wide_msg}")));
            line.enable_steady_tick(Duration::from_millis(120));
            Live { all, line, copy: Mutex::default() }
        });
        let colors = is_terminal && std::env::var_os("NO_COLOR").is_none();
        Self { start, live, colors, last_plain: Mutex::new(start) }
    }

    /// Begins a phase: what happens, and why that is safe.
    pub(crate) fn phase(&self, title: &str, why: &str) {
        let at = self.start.elapsed().as_secs_f64();
        self.print("");
        self.print(&format!("{} {}", self.dim(&format!("{at:>5.1} s")), self.bold(title)));
        for line in wrapped(why, 92) {
            self.print(&format!("        {}", self.dim(&line)));
        }
        *self.last_plain.lock() = Instant::now();
    }

    /// A result that stays.
    pub(crate) fn done(&self, text: &str) {
        self.print(&format!("        {} {text}", self.green("✓")));
    }

    /// Something worth to know that is not as good as it could be.
    pub(crate) fn note(&self, text: &str) {
        self.print(&format!("        · {text}"));
    }

    /// How things are now; gone with the next one.
    pub(crate) fn live(&self, text: &str) {
        if let Some(live) = &self.live {
            live.line.set_message(text.to_owned());
            return;
        }
        let mut last = self.last_plain.lock();
        if last.elapsed() >= PLAIN_EVERY {
            *last = Instant::now();
            drop(last);
            self.print(&format!("          {text}"));
        }
    }

    /// How far something is that has an end; gone with `no_bar`.
    pub(crate) fn bar(&self, done: u64, of: u64, text: &str) {
        let Some(live) = &self.live else {
            let percent = (done * 100).checked_div(of).unwrap_or(0);
            return self.live(&format!("{percent} %, {done} of {of} documents, {text}"));
        };
        let mut bar = live.copy.lock();
        let bar = bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(of).with_style(style(
                "        {bar:32.green} {percent:>3} %  {human_pos} of {human_len}  {wide_msg}",
            ));
            live.all.insert_before(&live.line, bar)
        });
        bar.set_length(of);
        bar.set_position(done.min(of));
        bar.set_message(text.to_owned());
    }

    pub(crate) fn no_bar(&self) {
        if let Some(bar) = self.live.as_ref().and_then(|live| live.copy.lock().take()) {
            bar.finish_and_clear();
        }
    }

    /// No live lines any more.
    pub(crate) fn end(&self) {
        self.no_bar();
        if let Some(live) = &self.live {
            live.line.finish_and_clear();
        }
    }

    fn print(&self, text: &str) {
        match &self.live {
            // An empty line would not be printed.
            Some(live) => drop(live.all.println(if text.is_empty() { " " } else { text })),
            // Nobody may be reading any more, which must not end the demo half way.
            None => drop(writeln!(std::io::stdout(), "{text}")),
        }
    }

    pub(crate) fn bold(&self, text: &str) -> String {
        self.colored("1", text)
    }

    fn dim(&self, text: &str) -> String {
        self.colored("2", text)
    }

    fn green(&self, text: &str) -> String {
        self.colored("32", text)
    }

    fn colored(&self, code: &str, text: &str) -> String {
        if self.colors { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.end();
    }
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// 1234567 as `1,234,567`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_lines() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_000), "1,000");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(wrapped("one two three", 8), ["one two", "three"]);
        assert!(wrapped("", 8).is_empty());
    }
}

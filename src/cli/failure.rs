//! Why a command did not do what it was asked, and the exit code that says so.

use std::process::ExitCode;

use super::output;
use crate::admin::Problem;

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(super) enum Failure {
    /// The admin API said no, or that something does not answer.
    Problem(Box<Problem>),
    /// There was no answer at all.
    Unreachable(String),
    /// The command line or the configuration is wrong.
    Usage(String),
    /// It was begun and went wrong.
    Failed(String),
    /// The answer is on the screen already, and it is not good.
    NotPassed,
}

impl Failure {
    /// Tells it, on standard error or with `json` on standard output.
    pub(super) fn report(self, json: bool) -> ExitCode {
        let (code, text) = match self {
            Self::Problem(problem) => {
                let code = match problem.status {
                    500.. => 3,
                    // What makes no sense is told by the command line as often as by the API.
                    400 => 2,
                    _ => 1,
                };
                if json {
                    output::json(&serde_json::to_value(&problem).unwrap_or_default());
                    return ExitCode::from(code);
                }
                (code, in_words(&problem))
            }
            Self::Unreachable(text) => (3, text),
            Self::Usage(text) => (2, text),
            Self::Failed(text) => (1, text),
            Self::NotPassed => return ExitCode::from(1),
        };
        output::error(&text);
        ExitCode::from(code)
    }
}

fn in_words(problem: &Problem) -> String {
    let mut text = format!("{} ({}): {}", problem.title, problem.code, problem.detail);
    for reason in &problem.reasons {
        text.push_str("\n  - ");
        text.push_str(reason);
    }
    text
}

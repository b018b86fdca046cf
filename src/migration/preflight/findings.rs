//! Collecting findings.

use crate::migration::control::{Finding, PreflightReport, Severity};
use crate::migration::patterns::Named;
use crate::model::namespace::Namespace;

impl PreflightReport {
    /// With what patterns named.
    #[must_use]
    pub fn with_patterns(self, patterns: &[Named]) -> Self {
        let mut findings = Findings(self.findings);
        for (pattern, found) in patterns {
            let names: Vec<&str> = found.iter().map(Namespace::as_str).collect();
            let message = match names.len() {
                0 => "it names no collection that is on old".to_owned(),
                some => format!("it names {some} collections on old: {}", names.join(", ")),
            };
            let remedy =
                "none; what comes into being later, through the proxy, becomes part of the migration";
            findings.info("pattern", pattern.as_str(), message, remedy);
        }
        findings.report()
    }

    /// Refused, as it is not known what patterns name.
    #[must_use]
    pub fn without_patterns(self, why: String) -> Self {
        let mut findings = Findings(self.findings);
        findings.refuse("pattern", "", why, "see to the error and look again");
        findings.report()
    }
}

/// What has been found so far.
#[derive(Default)]
pub(super) struct Findings(pub(super) Vec<Finding>);

impl Findings {
    fn push(&mut self, severity: Severity, code: &str, of: &str, message: String, remedy: String) {
        self.0.push(Finding { severity, code: code.to_owned(), namespace: of.to_owned(), message, remedy });
    }

    pub(super) fn refuse(
        &mut self,
        code: &str,
        of: &str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.push(Severity::Refused, code, of, message.into(), remedy.into());
    }

    pub(super) fn limit(
        &mut self,
        code: &str,
        of: &str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.push(Severity::Limits, code, of, message.into(), remedy.into());
    }

    pub(super) fn info(
        &mut self,
        code: &str,
        of: &str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.push(Severity::Info, code, of, message.into(), remedy.into());
    }

    /// Something that could not be looked at, because the user may not ask or the server does not know.
    pub(super) fn not_checked(&mut self, what: &str, why: impl std::fmt::Display) {
        let remedy = "grant clusterMonitor, or check it by hand";
        self.info("not-checked", "", format!("{what} could not be checked: {why}"), remedy);
    }

    /// Adds what another look found, and returns its value.
    pub(super) fn take<T>(&mut self, (value, others): (T, Self)) -> T {
        self.0.extend(others.0);
        value
    }

    pub(super) fn refused(&self) -> bool {
        self.0.iter().any(|finding| finding.severity == Severity::Refused)
    }

    /// The worst first.
    pub(super) fn report(mut self) -> PreflightReport {
        let ok = !self.refused();
        self.0.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        PreflightReport { ok, findings: self.0 }
    }
}

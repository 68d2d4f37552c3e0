//! `causeway doctor`: asks this node's agent what is wrong.

pub mod api;
pub mod certificates;
pub mod dns;
pub mod flows;
pub mod network;
pub mod pods;
pub mod services;
pub mod settings;
pub mod surroundings;
pub mod vpc;
pub mod ways;

use std::fmt::Write as _;
use std::path::Path;

use crate::ask::AskError;
use crate::cli::Output;
use crate::findings::{self, Finding, Order, Report, Severity};
use crate::logs::printable;

/// Has the agent whose state is in `state_dir` look at everything, and put right what it can where it shall `fix`.
///
/// # Errors
/// When it does not run, or does not answer in time.
pub async fn ask(state_dir: &Path, fix: bool) -> Result<Report, AskError> {
    crate::ask::ask(state_dir, findings::PATH, Order { fix }).await
}

/// Something that is wrong.
#[must_use]
pub fn finding(id: &str, object: String, evidence: String, repair: &str) -> Finding {
    Finding {
        severity: Severity::Wrong,
        id: id.to_owned(),
        object,
        evidence,
        repair: repair.to_owned(),
    }
}

/// The report in the form that was asked for.
#[must_use]
pub fn render(report: &Report, output: Output) -> String {
    match output {
        Output::Text => text(report),
        Output::Json => format!("{:#}\n", serde_json::json!(report)),
    }
}

/// Whether something does not work as it should.
#[must_use]
pub fn is_wrong(report: &Report) -> bool {
    count(report, Severity::Wrong) > 0
}

fn count(report: &Report, severity: Severity) -> usize {
    let findings = report.findings.iter();
    findings.filter(|finding| finding.severity == severity).count()
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.repaired {
        let (object, evidence) = (printable(&finding.object), printable(&finding.evidence));
        let _infallible = writeln!(text, "FIXED  {}  {object}", printable(&finding.id));
        let _infallible = writeln!(text, "       seen:   {evidence}");
    }
    for finding in &report.findings {
        let severity = match finding.severity {
            Severity::Wrong => "WRONG",
            Severity::Note => "note",
        };
        let (object, evidence) = (printable(&finding.object), printable(&finding.evidence));
        let _infallible = writeln!(text, "{severity:<5}  {}  {object}", printable(&finding.id));
        let _infallible = writeln!(text, "       seen:   {evidence}");
        let _infallible = writeln!(text, "       repair: {}", printable(&finding.repair));
    }
    let (wrong, notes) = (count(report, Severity::Wrong), count(report, Severity::Note));
    let plural = if notes == 1 { "" } else { "s" };
    let node = printable(&report.node);
    let _infallible = match wrong {
        0 => writeln!(text, "{node}: nothing wrong, {notes} note{plural}"),
        wrong => writeln!(text, "{node}: {wrong} wrong, {notes} note{plural}"),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(severities: &[Severity]) -> Report {
        let finding = |severity: &Severity| Finding {
            severity: *severity,
            id: "not-served".into(),
            object: "Service default/web".into(),
            evidence: "part of it is not served: TCP 10.96.0.7:80 is taken by default/api".into(),
            repair: "give one of the two another address or port".into(),
        };
        Report {
            node: "node-1".into(),
            findings: severities.iter().map(finding).collect(),
            repaired: Vec::new(),
        }
    }

    #[test]
    fn findings_are_told_with_evidence_and_repair_and_counted() {
        let expected = "\
WRONG  not-served  Service default/web
       seen:   part of it is not served: TCP 10.96.0.7:80 is taken by default/api
       repair: give one of the two another address or port
note   not-served  Service default/web
       seen:   part of it is not served: TCP 10.96.0.7:80 is taken by default/api
       repair: give one of the two another address or port
node-1: 1 wrong, 1 note
";
        let both = report(&[Severity::Wrong, Severity::Note]);
        assert_eq!(render(&both, Output::Text), expected);
        assert!(is_wrong(&both));
        let mut fixed = report(&[Severity::Note]);
        fixed.repaired = report(&[Severity::Wrong]).findings;
        let expected = expected.replacen("WRONG", "FIXED", 1);
        let without_repair = expected.replacen(
            "       repair: give one of the two another address or port\n",
            "",
            1,
        );
        assert_eq!(
            render(&fixed, Output::Text),
            without_repair.replace("1 wrong, 1 note", "nothing wrong, 1 note")
        );
        let none = report(&[]);
        assert_eq!(render(&none, Output::Text), "node-1: nothing wrong, 0 notes\n");
        assert!(!is_wrong(&none));
        assert!(!is_wrong(&report(&[Severity::Note])));
    }

    #[test]
    fn nothing_that_is_quoted_drives_a_terminal() {
        let mut wrong = report(&[Severity::Wrong]);
        // A bundle's are somebody else's as a whole.
        wrong.findings[0].repair = "\u{1b}]0;mended\u{7}".into();
        wrong.findings[0].evidence = "etcd says \u{1b}[2J\u{202e}\nnode-1: nothing wrong".into();
        let text = render(&wrong, Output::Text);
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
    }

    #[test]
    fn json_reads_back_as_the_same() {
        let both = report(&[Severity::Wrong, Severity::Note]);
        let json = render(&both, Output::Json);
        assert_eq!(serde_json::from_str::<Report>(&json).expect("valid"), both);
    }
}

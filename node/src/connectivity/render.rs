//! The matrix for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::cells::{Family, Path, Place, Transport};
use super::{Report, Told};
use crate::logs::printable;

/// Where a server may be, with a column for each transport below it.
const PLACES: [Place; 2] = [Place::SameNode, Place::OtherNode];

/// The widest name of a path.
const PATH: usize = 28;
/// A column of the matrix.
const COLUMN: usize = 6;

/// What is shown of several attempts: whether all were good.
type Rows = BTreeMap<(Path, Family), BTreeMap<(Place, Transport), bool>>;

/// The matrix, then a line for each failure, then how many there are.
#[must_use]
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    line(
        &mut text,
        &format!("connectivity between {}", report.nodes.join(", ")),
    );
    line(&mut text, "");
    matrix(&mut text, &rows(report));
    for note in &report.notes {
        line(&mut text, note);
    }
    if !report.notes.is_empty() {
        line(&mut text, "");
    }
    let failed = report.cells.iter().filter(|told| !told.ok);
    for told in failed {
        failure(&mut text, told);
    }
    if report.failed > 0 {
        line(&mut text, "");
    }
    let seconds = format!("{}.{} s", report.millis / 1000, report.millis % 1000 / 100);
    line(
        &mut text,
        &format!("{} tried, {} failed, {seconds}", report.tried, report.failed),
    );
    text
}

/// What clusters and packets say drives no terminal.
fn line(text: &mut String, line: &str) {
    text.push_str(printable(line).trim_end());
    text.push('\n');
}

fn rows(report: &Report) -> Rows {
    let mut rows = Rows::new();
    for told in &report.cells {
        let row = rows.entry((told.path, told.family)).or_default();
        *row.entry((told.place, told.transport)).or_insert(true) &= told.ok;
    }
    rows
}

fn matrix(text: &mut String, rows: &Rows) {
    let width = COLUMN * Transport::OF_SERVERS.len();
    let mut places = format!("{:PATH$}  {:4}  ", "", "");
    let mut transports = places.clone();
    for place in PLACES {
        let _infallible = write!(places, "{place:width$}");
        for transport in Transport::OF_SERVERS {
            let _infallible = write!(transports, "{:COLUMN$}", heading(transport));
        }
    }
    line(text, &places);
    line(text, &transports);
    for ((path, family), cells) in rows {
        let mut row = format!("{path:PATH$}  {family:4}  ");
        if path.is_elsewhere() {
            row.push_str(word(cells.get(&(Place::Anywhere, Transport::Connect)).copied()));
        } else {
            for place in PLACES {
                for transport in Transport::OF_SERVERS {
                    let cell = word(cells.get(&(place, transport)).copied());
                    let _infallible = write!(row, "{cell:COLUMN$}");
                }
            }
        }
        line(text, &row);
    }
    line(text, "");
}

/// A plus for large packets.
const fn heading(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
        Transport::TcpLarge => "tcp+",
        Transport::UdpLarge => "udp+",
        Transport::Connect => "open",
    }
}

const fn word(is_good: Option<bool>) -> &'static str {
    match is_good {
        Some(true) => "ok",
        Some(false) => "FAIL",
        None => "-",
    }
}

fn failure(text: &mut String, told: &Told) {
    let transport = match told.transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
        Transport::TcpLarge => "tcp with large packets",
        Transport::UdpLarge => "udp with large packets",
        Transport::Connect => "connection",
    };
    let to = told
        .to
        .as_ref()
        .map_or_else(String::new, |to| format!(" on {to}"));
    let reason = told.reason.as_deref().unwrap_or_default();
    line(
        text,
        &format!(
            "FAIL  {} ({}), {transport}: from {} to {}{to}: {reason}",
            told.path, told.family, told.from, told.target
        ),
    );
    for told in &told.trace {
        line(text, &format!("      {told}"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::cells::{cells, tests::site};
    use super::*;

    /// A report in which these probes of the first node fail.
    fn report(failing: &[(&str, &str)]) -> Report {
        let sites = [site(1, false), site(2, false)];
        let api = ["10.96.0.1:443".parse().expect("an address")];
        let told = cells(&sites, &api, &[]).into_iter().map(|cell| {
            let reason = failing
                .iter()
                .find(|(probe, _)| cell.from == 0 && cell.probe() == *probe)
                .map(|(_, reason)| (*reason).to_owned());
            Told {
                path: cell.path,
                place: cell.place,
                family: cell.family,
                transport: cell.transport,
                from: sites[cell.from].node.clone(),
                to: cell.to.map(|to| sites[to].node.clone()),
                target: cell.target.clone(),
                ok: reason.is_none(),
                attempts: 1,
                micros: reason.is_none().then_some(150),
                trace: match reason.is_some() && cell.transport == Transport::UdpLarge {
                    true => vec!["DROPPED at node-1 flannel.1: \u{1b}PKT_TOO_BIG in ip_forward".to_owned()],
                    false => Vec::new(),
                },
                reason,
            }
        });
        let told: Vec<Told> = told.collect();
        Report {
            namespace: "causeway-connectivity-0a1b2c".to_owned(),
            image: "causeway/testserver:v1".to_owned(),
            nodes: sites.iter().map(|site| site.node.clone()).collect(),
            notes: vec!["the cluster has no IPv6".to_owned()],
            tried: told.len(),
            failed: told.iter().filter(|told| !told.ok).count(),
            cells: told,
            millis: 3210,
        }
    }

    #[test]
    fn the_matrix_shows_a_failure_of_either_node_and_tells_why() {
        let failing = [
            ("udp+large:10.244.2.3:8081", "1422 bytes: no answer"),
            ("connect:10.96.0.1:443", "connection refused"),
        ];
        let expected = "\
connectivity between node-1, node-2

                                    same node               another node
                                    tcp   udp   tcp+  udp+  tcp   udp   tcp+  udp+
pod -> pod                    IPv4  ok    ok    ok    ok    ok    ok    ok    FAIL
pod -> ClusterIP              IPv4  ok    ok    ok    ok    ok    ok    ok    ok
pod -> NodePort, own node     IPv4  ok    ok    ok    ok    ok    ok    ok    ok
pod -> NodePort, other node   IPv4  -     -     -     -     ok    ok    ok    ok
pod -> name                   IPv4  ok    ok    -     -     ok    ok    -     -
pod -> headless name          IPv4  ok    ok    -     -     ok    ok    -     -
node -> pod                   IPv4  ok    ok    ok    ok    ok    ok    ok    FAIL
node -> ClusterIP             IPv4  ok    ok    ok    ok    ok    ok    ok    ok
pod -> API server             IPv4  FAIL

the cluster has no IPv6

FAIL  pod -> pod (IPv4), udp with large packets: from node-1 to 10.244.2.3:8081 on node-2: 1422 bytes: no answer
      DROPPED at node-1 flannel.1: \u{fffd}PKT_TOO_BIG in ip_forward
FAIL  node -> pod (IPv4), udp with large packets: from node-1 to 10.244.2.3:8081 on node-2: 1422 bytes: no answer
      DROPPED at node-1 flannel.1: \u{fffd}PKT_TOO_BIG in ip_forward
FAIL  pod -> API server (IPv4), connection: from node-1 to 10.96.0.1:443: connection refused

106 tried, 3 failed, 3.2 s
";
        assert_eq!(text(&report(&failing)), expected);
    }

    #[test]
    fn where_all_is_well_there_is_the_matrix_alone() {
        let told = text(&report(&[]));
        assert!(
            told.ends_with("the cluster has no IPv6\n\n106 tried, 0 failed, 3.2 s\n"),
            "{told}"
        );
        assert!(!told.contains("FAIL"), "{told}");
    }

    #[test]
    fn the_json_names_each_cell() {
        let failing = [("udp+large:10.244.2.3:8081", "1422 bytes: no answer")];
        let json = report(&failing).render(crate::cli::Output::Json);
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        let cells = json["cells"].as_array().expect("cells");
        assert_eq!(
            cells[0],
            serde_json::json!({
                "path": "pod-to-pod", "place": "same-node", "family": "IPv4", "transport": "tcp", "from": "node-1",
                "to": "node-1", "target": "10.244.1.3:8080", "ok": true, "attempts": 1, "micros": 150,
            })
        );
        let failed = cells.iter().find(|cell| cell["ok"] == false).expect("one failed");
        assert_eq!(
            *failed,
            serde_json::json!({
                "path": "pod-to-pod", "place": "other-node", "family": "IPv4", "transport": "udp-large",
                "from": "node-1", "to": "node-2", "target": "10.244.2.3:8081", "ok": false, "attempts": 1,
                "reason": "1422 bytes: no answer",
                "trace": ["DROPPED at node-1 flannel.1: \u{1b}PKT_TOO_BIG in ip_forward"],
            })
        );
        assert_eq!((&json["tried"], &json["failed"]), (&106.into(), &2.into()));
    }
}

//! Requests to Services, from processes of a node or a pod.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use tests::process::{self, Place, Process};
use tests::wait;

use crate::DEADLINE;

/// A BPF file system of the test's own.
pub struct Bpffs(PathBuf);

impl Bpffs {
    pub fn mount(path: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path)?;
        mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), None::<&str>)?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

pub fn service(port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "web"},
        "spec": {"clusterIPs": ["10.96.0.7"], "ports": [{"port": port}]},
    })
}

pub fn slice(endpoints: &[&str]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|address| json!({"addresses": [address]}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "default", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": [{"port": 8080}],
    })
}

/// An HTTP server that answers with its own address.
pub fn serve(place: &Place, address: &str) -> anyhow::Result<Process> {
    // Not an HTTPServer: that one asks the DNS for its own name before it listens.
    let script = format!(
        "import http.server, socketserver\n\
         class Hello(http.server.BaseHTTPRequestHandler):\n\
         \x20   def do_GET(self):\n\
         \x20       self.send_response(200); self.end_headers(); self.wfile.write(b'from {address}\\n')\n\
         \x20   def log_message(self, *_): pass\n\
         server = socketserver.ThreadingTCPServer(('{address}', 8080), Hello)\n\
         print('ready', flush=True)\n\
         server.serve_forever()\n"
    );
    let mut command = process::command(place, "python3");
    command.args(["-c", &script]);
    let mut server = Process::spawn(place, &mut command)?;
    server.await_line("ready", DEADLINE);
    Ok(server)
}

/// One request.
pub fn ask(place: &Place, url: &str) -> Result<String, String> {
    let mut command = process::command(place, "curl");
    command.args(["--silent", "--show-error", "--max-time", "2", url]);
    match process::run_in(place, &mut command, b"") {
        Ok(output) if output.status.success() => Ok(output.stdout.trim().to_owned()),
        Ok(output) => Err(output.stderr),
        Err(error) => Err(error.to_string()),
    }
}

/// Requests one after the other, as long as it lives; a failure is a line with `FAILED`.
pub fn ask_on(place: &Place, url: &str) -> anyhow::Result<Process> {
    let mut command = process::command(place, "sh");
    let script = format!("while :; do curl --silent --max-time 1 {url} || echo FAILED; done");
    command.args(["-c", &script]);
    Process::spawn(place, &mut command)
}

pub fn lines(client: &Process, text: &str) -> usize {
    client.output().lines().filter(|line| line.contains(text)).count()
}

/// Waits until some more requests were answered.
#[track_caller]
pub fn await_progress(client: &Process, what: &str) {
    let before = lines(client, "from");
    wait::until_value(
        what,
        DEADLINE,
        || lines(client, "from"),
        |now| *now >= before + 20,
    );
}

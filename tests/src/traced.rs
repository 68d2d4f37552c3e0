//! `causeway trace` as people run it, and what its tests need around it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use crate::cluster::program;
use crate::process::{self, Output, Place, Process};
use crate::topology::Host;

/// Long enough for a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// Runs it to its end.
///
/// # Panics
/// When it cannot be started.
#[must_use]
pub fn trace(arguments: &[&str]) -> Output {
    process::run_in(&Place::default(), &mut command(arguments), b"").expect("started")
}

/// Runs it to its end, in a network namespace.
///
/// # Panics
/// When it cannot be started.
#[must_use]
pub fn trace_in(host: &Host, arguments: &[&str]) -> Output {
    process::run_in(&host.place(), &mut command(arguments), b"").expect("started")
}

/// Runs it to its end, and sends once it looks.
///
/// # Panics
/// When it cannot be started, or does not look.
#[must_use]
pub fn trace_while(arguments: &[&str], send: impl FnOnce()) -> Output {
    let following = Following::start(arguments);
    send();
    following.end()
}

/// A process of it that looks for packets. It is not ended when this is dropped.
#[derive(Debug)]
pub struct Following {
    /// The process.
    pub child: Child,
    said: BufReader<ChildStderr>,
}

impl Following {
    /// Starts one, and waits until it says that it looks.
    ///
    /// # Panics
    /// When it cannot be started, or ends first.
    #[must_use]
    pub fn start(arguments: &[&str]) -> Self {
        let mut command = command(arguments);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("started");
        let mut said = BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        said.read_line(&mut line).expect("text");
        assert!(line.starts_with("following packets"), "{line}");
        Self { child, said }
    }

    /// What it tells at its end, which is waited for.
    ///
    /// # Panics
    /// When that is no text.
    #[must_use]
    pub fn end(mut self) -> Output {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        let told = self.child.stdout.as_mut().expect("piped");
        told.read_to_string(&mut stdout).expect("text");
        self.said.read_to_string(&mut stderr).expect("text");
        Output {
            status: self.child.wait().expect("ended"),
            stdout,
            stderr,
        }
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(program("causeway"));
    command.arg("trace").args(arguments);
    command
}

/// A device that leads out of this machine, with a network behind it: what is handed to it is given to a process, which
/// throws it away. It is there as long as that process.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn way_out(host: &Host, device: &str, network: &str) -> Process {
    let lines = [
        format!("link set {device} up"),
        format!("address add 10.213.5.1/24 dev {device}"),
        format!("neigh add 10.213.5.2 lladdr 02:00:00:00:00:02 dev {device}"),
        format!("route replace {network} via 10.213.5.2"),
    ];
    held(host, device, "0x1002", &lines)
}

/// The same by a device of which packets go as they are, without a link layer's header, and which has an address.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn bare_way_out(host: &Host, device: &str, network: &str) -> Process {
    let lines = [
        format!("link set {device} up"),
        format!("address add 10.213.6.1/32 dev {device}"),
        format!("route replace {network} dev {device}"),
    ];
    held(host, device, "0x1001", &lines)
}

/// Makes a device by `TUNSETIFF` with `IFF_NO_PI` and `IFF_TAP` or `IFF_TUN`, and sets it up by lines of `ip`.
fn held(host: &Host, device: &str, flags: &str, lines: &[String]) -> Process {
    let program = format!(
        "import fcntl, struct\n\
         tap = open('/dev/net/tun', 'r+b', buffering=0)\n\
         fcntl.ioctl(tap, 0x400454ca, struct.pack('16sH22x', b'{device}', {flags}))\n\
         print('held', flush=True)\n\
         while tap.read(65536): pass"
    );
    let mut command = Command::new("python3");
    command.args(["-c", &program]);
    let mut holder = Process::spawn(&host.place(), &mut command).expect("started");
    holder.await_line("held", SOON);
    for line in lines {
        let output = host.command("ip", &line.split(' ').collect::<Vec<_>>());
        let output = output.expect("run");
        assert!(output.status.success(), "ip {line}: {output:?}");
    }
    holder
}

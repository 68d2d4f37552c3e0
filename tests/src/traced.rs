//! `causeway trace` as people run it, and what its tests need around it.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::attached::attached_by;
use crate::cluster::program;
use crate::process::{self, Output, Place, Process};
use crate::topology::Host;
use crate::wait;

/// Long enough for a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// The tracepoints that it attaches to.
const PROGRAMS: usize = 4;

/// Runs it to its end.
///
/// # Panics
/// When it cannot be started.
#[must_use]
pub fn trace(arguments: &[&str]) -> Output {
    process::run_in(&Place::default(), &mut command(arguments), b"").expect("started")
}

/// Runs it to its end, and sends once it is attached.
///
/// # Panics
/// When it cannot be started, or does not attach.
#[must_use]
pub fn trace_while(arguments: &[&str], send: impl FnOnce()) -> Output {
    let mut command = command(arguments);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.expect("started");
    await_attached(child.id());
    send();
    let output = child.wait_with_output().expect("ended");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    Output {
        status: output.status,
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// Waits until a process of it is attached, and returns the numbers of its BPF programs.
///
/// # Panics
/// When it does not attach.
pub fn await_attached(pid: u32) -> BTreeSet<u32> {
    let is_attached = |own: &BTreeSet<u32>| own.len() == PROGRAMS;
    wait::until_value("the programs", SOON, || attached_by(pid), is_attached)
}

/// The command.
#[must_use]
pub fn command(arguments: &[&str]) -> Command {
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
    // TUNSETIFF with IFF_TAP and IFF_NO_PI.
    let program = format!(
        "import fcntl, struct\n\
         tap = open('/dev/net/tun', 'r+b', buffering=0)\n\
         fcntl.ioctl(tap, 0x400454ca, struct.pack('16sH22x', b'{device}', 0x1002))\n\
         print('held', flush=True)\n\
         while tap.read(65536): pass"
    );
    let mut command = Command::new("python3");
    command.args(["-c", &program]);
    let mut holder = Process::spawn(&host.place(), &mut command).expect("started");
    holder.await_line("held", SOON);
    for line in [
        format!("link set {device} up"),
        format!("address add 10.213.5.1/24 dev {device}"),
        format!("neigh add 10.213.5.2 lladdr 02:00:00:00:00:02 dev {device}"),
        format!("route replace {network} via 10.213.5.2"),
    ] {
        let output = host.command("ip", &line.split(' ').collect::<Vec<_>>());
        let output = output.expect("run");
        assert!(output.status.success(), "ip {line}: {output:?}");
    }
    holder
}

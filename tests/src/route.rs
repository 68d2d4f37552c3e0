//! Routes of this machine, removed when dropped.

use std::process::Command;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use anyhow::{Context, ensure};
use nix::sched::{CloneFlags, unshare};

/// The networks of Services, and the one for documentation (RFC 5737) that tests give to load balancers and the like.
const SERVICES: [&str; 2] = ["10.96.0.0/12", "198.51.100.0/24"];

/// A route, removed when dropped.
pub struct Route(String);

impl Route {
    /// Adds one as `ip route` writes it.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn add(route: String) -> anyhow::Result<Self> {
        ip(&format!("route add {route}"))?;
        Ok(Self(route))
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        if let Err(error) = ip(&format!("route del {}", self.0)) {
            eprintln!("left behind: {error:#}");
        }
    }
}

/// Keeps this machine from sending to the world behind it what goes to Services that nobody serves at the moment: their
/// networks lie behind a device whose other end is in a namespace that only a thread holds. So the kernel removes device
/// and routes with this process, however it ends.
pub struct Unserved {
    device: String,
    keeper: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Unserved {
    /// Takes the networks off the world.
    ///
    /// # Errors
    /// When the kernel or `ip` refuses.
    pub fn new() -> anyhow::Result<Self> {
        let device = format!("cwt-{}", std::process::id());
        let (done, until_dropped) = mpsc::channel();
        let (made, answer) = mpsc::channel();
        let name = device.clone();
        let keeper = thread::spawn(move || keep(&name, &made, &until_dropped));
        let unserved = Self {
            device,
            keeper: Some((done, keeper)),
        };
        answer.recv().context("the device's keeper")??;
        ip(&format!("link set {} up arp off", unserved.device))?;
        for network in SERVICES {
            ip(&format!("route add {network} dev {}", unserved.device))?;
        }
        Ok(unserved)
    }
}

impl Drop for Unserved {
    fn drop(&mut self) {
        if let Err(error) = ip(&format!("link del {}", self.device)) {
            eprintln!("left behind: {error:#}");
        }
        if let Some((done, keeper)) = self.keeper.take() {
            drop(done);
            let _ = keeper.join();
        }
    }
}

/// Holds the namespace with the other end, until the sender of `until_dropped` is gone.
fn keep(device: &str, made: &Sender<anyhow::Result<()>>, until_dropped: &Receiver<()>) {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let here = std::process::id();
        ip(&format!(
            "link add {device} netns {here} type veth peer name nowhere"
        ))?;
        ip("link set nowhere up arp off")
    };
    let result = make();
    let _ = made.send(result);
    let _ = until_dropped.recv();
}

fn ip(words: &str) -> anyhow::Result<()> {
    let output = Command::new("ip").args(words.split(' ')).output()?;
    ensure!(output.status.success(), "ip {words}: {output:?}");
    Ok(())
}

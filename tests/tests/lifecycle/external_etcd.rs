//! A cluster on an etcd that wants a certificate, a user and a password, and of which a member is away.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tests::cluster::{Cluster, causeway, everything};
use tests::directory::Directory;
use tests::fake_api::Authority;
use tests::process::{Place, Process, installed};
use tests::{ports, skipped, wait};

use crate::{ensure_unchanged, kernel_state, state_dir};

const CONTROL_PLANE: &str = "172.30.0.1";
const SOON: Duration = Duration::from_secs(60);

/// An etcd that listens wherever the cluster is.
struct Etcd {
    program: PathBuf,
    directory: Directory,
    ports: [u16; 2],
    process: Option<Process>,
}

impl Etcd {
    fn start(program: PathBuf) -> anyhow::Result<Self> {
        let directory = Directory::new("external-etcd");
        make_certificates(&directory)?;
        let mut etcd = Self {
            program,
            directory,
            ports: [ports::free(), ports::free()],
            process: None,
        };
        etcd.run()?;
        Ok(etcd)
    }

    fn file(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn run(&mut self) -> anyhow::Result<()> {
        self.process = None;
        let [client, peer] = self.ports;
        let peer = format!("http://127.0.0.1:{peer}");
        let mut command = Command::new(&self.program);
        command
            .args(["--data-dir", &self.file("data")])
            .arg(format!("--listen-client-urls=https://0.0.0.0:{client}"))
            .arg(format!(
                "--advertise-client-urls=https://{CONTROL_PLANE}:{client}"
            ))
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .arg(format!("--initial-cluster=default={peer}"))
            .arg("--client-cert-auth")
            .args(["--trusted-ca-file", &self.file("ca.crt")])
            .args([
                "--cert-file",
                &self.file("server.crt"),
                "--key-file",
                &self.file("server.key"),
            ]);
        let mut process = Process::spawn(&Place::default(), &mut command)?;
        process.await_line("ready to serve client requests", SOON);
        self.process = Some(process.quiet());
        Ok(())
    }

    fn ctl(&self, words: &str) -> anyhow::Result<String> {
        let program = installed("etcdctl").context("etcdctl is not installed (Debian: etcd-client)")?;
        let output = Command::new(program)
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints=https://127.0.0.1:{}", self.ports[0]))
            .args([
                "--cacert",
                &self.file("ca.crt"),
                "--cert",
                &self.file("client.crt"),
            ])
            .args(["--key", &self.file("client.key")])
            .args(words.split(' '))
            .output()?;
        ensure!(
            output.status.success(),
            "etcdctl {words}: {}",
            everything(&output)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Flags of `up`, with the password in the file of that name.
    fn flags(&self, password_file: &str) -> Vec<String> {
        let url = format!("https://{CONTROL_PLANE}:{}", self.ports[0]);
        let away = format!("https://{CONTROL_PLANE}:1");
        let flags = [
            ("--nodes", "1".to_owned()),
            ("--etcd", format!("{away},{url}")),
            ("--etcd-ca", self.file("ca.crt")),
            ("--etcd-cert", self.file("client.crt")),
            ("--etcd-key", self.file("client.key")),
            ("--etcd-user", "causeway".to_owned()),
            ("--etcd-password-file", self.file(password_file)),
        ];
        flags
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .collect()
    }
}

fn make_certificates(directory: &Directory) -> anyhow::Result<()> {
    let authority = Authority::new("etcd")?;
    let _ = directory.write("ca.crt", &authority.pem());
    for name in ["server", "client"] {
        let identity = authority.issue(name, &[CONTROL_PLANE.parse()?])?;
        let _ = directory.write(&format!("{name}.crt"), &identity.certificate);
        let _ = directory.write(&format!("{name}.key"), &identity.key);
    }
    let _ = directory.write("right", "first\n");
    let _ = directory.write("wrong", "second\n");
    Ok(())
}

pub fn a_cluster_on_an_external_etcd() -> anyhow::Result<()> {
    let Some(program) = tests::etcd::program() else {
        skipped(
            "a cluster on an external etcd",
            "no etcd on PATH or in target/tools (run ./setup.sh test)",
        );
        return Ok(());
    };
    let before = kernel_state()?;
    let mut etcd = Etcd::start(program)?;
    for words in [
        "user add root:secret",
        "user grant-role root root",
        "role add cluster",
        "role grant-permission cluster readwrite --prefix=true /registry/",
        "user add causeway:first",
        "user grant-role causeway cluster",
        "auth enable",
    ] {
        etcd.ctl(words)?;
    }
    let refused = [
        (
            "wrong",
            "the user causeway is not let in: etcdserver: authentication failed, invalid user ID or password",
        ),
        (
            "right",
            "below /coreos.com/network/ reading and writing is not allowed: etcdserver: permission denied",
        ),
    ];
    for (password, wanted) in refused {
        let flags = etcd.flags(password);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let output = causeway("up", &state_dir(), &flags)?;
        let said = everything(&output);
        ensure!(
            output.status.code() == Some(2) && said.contains(wanted),
            "{password}: wanted {wanted:?}, got {said}"
        );
    }
    let _ = std::fs::remove_dir_all(state_dir());
    ensure_unchanged(&before)?;

    etcd.ctl(
        "--user=root:secret role grant-permission cluster readwrite --prefix=true /coreos.com/network/",
    )?;
    let flags = etcd.flags("right");
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let cluster = Cluster::up(&state_dir(), &flags)?;
    let make = |name: &str| {
        cluster
            .run(&["create", "configmap", name])
            .map_err(|error| format!("{error:#}"))
    };
    wait::until("an object is made", SOON, || make("first"));
    let keys = etcd.ctl("--user=root:secret get --prefix --keys-only /")?;
    for wanted in [
        "/registry/core/configmaps/default/first",
        "/coreos.com/network/subnets/",
    ] {
        ensure!(keys.contains(wanted), "{wanted} is not in etcd: {keys}");
    }
    // etcd's tokens are in its memory: what was let in before is not now.
    etcd.run()?;
    wait::until("an object is made after a restart of etcd", SOON, || {
        make("second")
    });
    let down = cluster.causeway("down", &[])?;
    ensure!(down.status.success(), "{}", everything(&down));
    ensure_unchanged(&before)
}

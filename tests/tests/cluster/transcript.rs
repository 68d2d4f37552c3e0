//! The transcript, played with kubectls that speak differently, each in a namespace of its own, side by side.

use std::sync::Mutex;
use std::time::Instant;

use anyhow::ensure;
use tests::cluster::Cluster;
use tests::kubectl;
use tests::transcript::{Player, Transcript};

pub fn holds(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.bring_shell()?;
    let transcript = Transcript::read()?;
    let alone = Mutex::new(());
    let kubectls = if tests::is_full_run() {
        kubectl::minors()
    } else {
        kubectl::distinct()
    };
    let play = |kubectl| {
        let begin = Instant::now();
        let outcome = Player::new(kubectl, cluster, "typed", &alone)?.play(&transcript);
        let commands = transcript.commands(kubectl.minor);
        println!("{kubectl}: {commands} commands in {:.1?}", begin.elapsed());
        outcome
    };
    let failures: Vec<String> = std::thread::scope(|scope| {
        let players: Vec<_> = kubectls
            .iter()
            .map(|kubectl| scope.spawn(|| play(kubectl)))
            .collect();
        let ended = players.into_iter().map(|player| player.join().expect("no panic"));
        ended
            .filter_map(|outcome: anyhow::Result<()>| outcome.err())
            .map(|error| format!("{error:#}\n"))
            .collect()
    });
    ensure!(failures.is_empty(), "{}", failures.concat());
    Ok(())
}

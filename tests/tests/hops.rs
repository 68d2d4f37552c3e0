//! A packet and its reply, hop by hop, on every way that there is: pods on two nodes, Services by ClusterIP and NodePort,
//! the node's own network, DNS, TCP and UDP, IPv4 and IPv6; with the socket hook, and with nftables alone.
//!
//! `causeway trace` sends the probe and tells the hops; [`rows`] has what they must be, and [`world`] how they are read.
//! Proxies answer clients through the node that they asked (there is no direct server return), so NodePort has one row.
//!
//! A harness of its own, because the rows of a datapath share one cluster that has to come down at the end.

#[path = "hops/rows.rs"]
mod rows;
#[path = "hops/world.rs"]
mod world;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use rows::Row;
use world::World;

const DATAPATHS: [(&str, [&[Row]; 2]); 2] = [
    ("ebpf", [rows::BOTH, rows::EBPF]),
    ("nftables", [rows::BOTH, rows::NFTABLES]),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let name = |datapath: &str, row: &Row| format!("{datapath}::{}", row.name);
    let runnable = tests::privileged("packets followed hop by hop on a cluster");
    if arguments.list || !runnable {
        let all = DATAPATHS.iter();
        let all = all
            .flat_map(|(datapath, rows)| rows.iter().copied().flatten().map(move |row| name(datapath, row)));
        let trials = all.map(|name| Trial::test(name, || Ok(())).with_ignored_flag(!runnable));
        return libtest_mimic::run(&arguments, trials.collect()).exit_code();
    }
    let mut exit = ExitCode::SUCCESS;
    for (datapath, rows) in DATAPATHS {
        let world = match World::up(datapath) {
            Ok(world) => world,
            Err(error) => {
                eprintln!("{error:#}");
                return ExitCode::FAILURE;
            }
        };
        // The trials outlive no call of `run`; a leaked reference lets them be 'static, and the cluster is taken down by
        // hand below.
        let world: &'static World = Box::leak(Box::new(world));
        let trials = rows.into_iter().flatten().map(|row| {
            Trial::test(name(datapath, row), move || {
                world
                    .check(row)
                    .map_err(|error| Failed::from(format!("{error:#}")))
            })
        });
        let conclusion = libtest_mimic::run(&arguments, trials.collect());
        if conclusion.has_failed() {
            world.cluster.print_logs();
            exit = ExitCode::FAILURE;
        }
        if let Err(error) = world.down() {
            eprintln!("{error:#}");
            exit = ExitCode::FAILURE;
        }
    }
    exit
}

//! One cluster of two nodes, and what breaks in such: each row breaks something, asks `causeway doctor`, `explain` and
//! `trace`, which must name the cause, the place and the object, mends it, and sees that all works again and nobody
//! finds anything.
//!
//! - [`row`]: what a row says, and how it is played; [`world`]: the cluster, and names for what is in it.
//! - [`objects`]: Services, endpoints and policies; [`tunnel`]: the way between nodes; [`pods`]: pods and their
//!   devices; [`node`]: settings, rules and tables of the node; [`agents`]: agents, leases, the API server and DNS.
//!
//! A harness of its own, because all rows share one cluster that has to come down at the end.

#[path = "gallery/agents.rs"]
mod agents;
#[path = "gallery/node.rs"]
mod node;
#[path = "gallery/objects.rs"]
mod objects;
#[path = "gallery/pods.rs"]
mod pods;
#[path = "gallery/row.rs"]
mod row;
#[path = "gallery/tunnel.rs"]
mod tunnel;
#[path = "gallery/world.rs"]
mod world;

use std::process::ExitCode;
use std::time::Instant;

use libtest_mimic::{Arguments, Failed, Trial};
use row::Row;
use world::World;

/// In order; none needs another one.
const TABLES: [&[Row]; 5] = [objects::ROWS, tunnel::ROWS, pods::ROWS, node::ROWS, agents::ROWS];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let rows = || TABLES.iter().flat_map(|table| table.iter());
    let runnable = tests::privileged("a cluster in which things break");
    if arguments.list || !runnable {
        let trials = rows().map(|row| Trial::test(row.name, || Ok(())).with_ignored_flag(!runnable));
        return libtest_mimic::run(&arguments, trials.collect()).exit_code();
    }
    let began = Instant::now();
    let world = match World::up() {
        Ok(world) => world,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    println!("the cluster stands after {:.1} s", began.elapsed().as_secs_f64());
    // The trials outlive no call of `run`; a leaked reference lets them be 'static, and the cluster is taken down by
    // hand below.
    let world: &'static World = Box::leak(Box::new(world));
    let trials = rows().map(|row| {
        Trial::test(row.name, move || {
            row.play(world)
                .map_err(|error| Failed::from(format!("{error:#}")))
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if conclusion.has_failed() {
        world.cluster.print_logs();
    }
    println!("all of it took {:.1} s", began.elapsed().as_secs_f64());
    match world.down() {
        Ok(()) => conclusion.exit_code(),
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

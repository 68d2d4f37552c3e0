//! How fast it writes. Not a test: prints figures, for a build with `--release` on a quiet machine.
//!
//! ```text
//! cargo test --release -p store --test server measure -- --ignored --nocapture
//! ```

use std::time::{Duration, Instant};

use etcd_client::Client;
use tokio::task::JoinSet;

use crate::{
    certificates::{Authority, connect},
    fixture::{Directory, Store, config},
};

const ONE_BY_ONE: usize = 2000;
const CLIENTS: usize = 64;
const PUTS_PER_CLIENT: usize = 200;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures"]
async fn puts_without_tls() {
    let directory = Directory::new();
    let store = Store::start(config(&directory)).await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(store.client().await);
    }
    measure("without TLS", clients).await;
    store.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures"]
async fn puts_with_mutual_tls() {
    let directory = Directory::new();
    let authority = Authority::new();
    let store = Store::start(authority.config(&directory)).await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(connect(&store, authority.identify("admin", "system:masters")).await);
    }
    measure("mutual TLS", clients).await;
    store.stop().await;
}

async fn measure(what: &str, mut clients: Vec<Client>) {
    let value = vec![b'x'; 256];
    let mut times = Vec::with_capacity(ONE_BY_ONE);
    for number in 0..ONE_BY_ONE {
        let start = Instant::now();
        clients[0]
            .put(format!("one/{number}"), value.clone(), None)
            .await
            .unwrap();
        times.push(start.elapsed());
    }
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    let start = Instant::now();
    let mut writers = JoinSet::new();
    for (client, mut connection) in clients.into_iter().enumerate() {
        let value = value.clone();
        writers.spawn(async move {
            for number in 0..PUTS_PER_CLIENT {
                connection
                    .put(format!("many/{client}/{number}"), value.clone(), None)
                    .await
                    .unwrap();
            }
        });
    }
    writers.join_all().await;
    let rate = (CLIENTS * PUTS_PER_CLIENT) as f64 / start.elapsed().as_secs_f64();
    let micros = |time: Duration| time.as_micros();
    println!(
        "{what}: one by one p50 {} us, p99 {} us; {CLIENTS} clients {rate:.0} puts/s",
        micros(at(50)),
        micros(at(99)),
    );
}

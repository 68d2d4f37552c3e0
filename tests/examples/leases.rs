//! How long a node needs to reach all others when it starts, and what it asks of the etcd for that.
//!
//! `leases [N]` (default 1,000): so many leases of nodes that are not there, and one agent that starts without a memory. Root,
//! and Debian's etcd; everything is in network namespaces of its own. Build the agent, which is the program beside this
//! one, with the same profile.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use etcd_client::Client;
use tests::network::Network;
use tests::wait;

const ETCD: &str = "172.30.8.1:2379";

/// For an agent to be ready.
const DEADLINE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let count = std::env::args()
        .nth(1)
        .map_or(Ok(1000), |count| count.parse::<u32>())?;
    let mut network = Network::new("many leases", "leases", 1).context("needs root and etcd")?;
    network.kill_agent(0);
    let own = network.lease_of(0)?;
    let own = own.rsplit('/').next().unwrap_or_default().to_owned();
    std::fs::remove_file(network.path(0, "state").join("overlay.json"))?;
    network.lan.switch.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(write(count, &own))
    })??;
    for what in ["first start", "started again"] {
        let before = requests(&network)?;
        let began = Instant::now();
        network.start_agent(0);
        if let Some(agent) = network.agents.first_mut().and_then(Option::as_mut) {
            agent.await_line("following leases", DEADLINE);
        }
        wait::until_value(
            "a route for each",
            DEADLINE,
            || network.routes(0).len(),
            |routes| *routes == count as usize,
        );
        println!(
            "{what}: {count} leases, a route for each after {:.2?}",
            began.elapsed()
        );
        let after = requests(&network)?;
        for (method, handled) in after {
            let more = handled - before.get(&method).copied().unwrap_or(0);
            if more > 0 {
                println!("  {more} × {method}");
            }
        }
        network.kill_agent(0);
    }
    Ok(())
}

/// Leases of /28 beside the agent's own /24.
async fn write(count: u32, own: &str) -> Result<()> {
    let mut client = Client::connect([ETCD], None).await?;
    let subnets =
        (0_u32..4096).map(|number| (number, format!("10.244.{}.{}-28", number / 16, number % 16 * 16)));
    let free = subnets.filter(|(_, subnet)| {
        let network = subnet.rsplit_once('.').map(|(network, _)| network);
        network.is_none_or(|network| !own.starts_with(&format!("{network}.")))
    });
    for (number, subnet) in free.take(count as usize) {
        let [.., high, low] = number.to_be_bytes();
        let value = serde_json::json!({
            "PublicIP": format!("10.9.{high}.{low}"), "BackendType": "vxlan",
            "BackendData": {"VNI": 1, "VtepMAC": format!("02:00:00:00:{high:02x}:{low:02x}")},
        });
        let key = format!("/coreos.com/network/subnets/{subnet}");
        client.put(key, value.to_string(), None).await?;
    }
    Ok(())
}

/// How many requests of each method the etcd has answered.
fn requests(network: &Network) -> Result<BTreeMap<String, u64>> {
    let text = network.lan.switch.run(|| {
        let mut stream = TcpStream::connect(ETCD)?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        std::io::Result::Ok(text)
    })??;
    let mut requests = BTreeMap::new();
    for line in text
        .lines()
        .filter(|line| line.starts_with("grpc_server_started_total{"))
    {
        let method = line
            .split("grpc_method=\"")
            .nth(1)
            .and_then(|rest| rest.split('"').next());
        let count = line
            .rsplit(' ')
            .next()
            .and_then(|count| count.parse::<f64>().ok());
        if let (Some(method), Some(count)) = (method, count) {
            *requests.entry(method.to_owned()).or_default() += count as u64;
        }
    }
    Ok(requests)
}

//! Routes of this machine, removed when dropped.

use std::process::Command;

use anyhow::ensure;

/// The networks of Services, and those for documentation (RFC 5737) that tests give to load balancers and the like.
const SERVICES: [&str; 3] = ["10.96.0.0/12", "203.0.113.0/24", "198.51.100.0/24"];

/// A route, removed when dropped.
pub struct Route(String);

impl Route {
    /// Adds one as `ip route` writes it.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn add(route: String) -> anyhow::Result<Self> {
        ip_route("add", &route)?;
        Ok(Self(route))
    }

    /// A network that nobody has. By its metric it is told from a route that the host may have, and from none but what
    /// a killed run of a test left.
    fn nowhere(network: &str) -> anyhow::Result<Self> {
        let route = format!("unreachable {network} metric 4242");
        ip_route("replace", &route)?;
        Ok(Self(route))
    }
}

/// Keeps this machine from sending to the world behind it what goes to Services that nobody serves at the moment.
///
/// # Errors
/// When `ip` refuses.
pub fn unserved() -> anyhow::Result<Vec<Route>> {
    SERVICES.into_iter().map(Route::nowhere).collect()
}

impl Drop for Route {
    fn drop(&mut self) {
        if let Err(error) = ip_route("del", &self.0) {
            eprintln!("left behind: {error:#}");
        }
    }
}

fn ip_route(command: &str, route: &str) -> anyhow::Result<()> {
    let words = ["route", command].into_iter().chain(route.split(' '));
    let output = Command::new("ip").args(words).output()?;
    ensure!(output.status.success(), "ip route {command} {route}: {output:?}");
    Ok(())
}

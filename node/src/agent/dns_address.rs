//! The address that the DNS server of this node listens on, on the node's `lo`.
//!
//! It is put back when somebody takes it away, at once by the kernel's events and by looking every few seconds. It
//! stays when the agent ends. Which address was ours is kept in a file, so that a changed configuration does not
//! leave the old one behind.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use ipnetwork::IpNetwork;
use netlink::{AbsentIsFine, Address, Event, Events, Group, Kernel, LinkChange, Netlink, Scope};
use overlay::uninstall::remove_file;
use tokio_util::sync::CancellationToken;

use super::supervisor::Part;

/// Between two looks without any event.
const AUDIT: Duration = Duration::from_secs(10);

/// How soon the sign to end is seen.
const TICK: Duration = Duration::from_millis(500);

/// The file in the state directory that names the address we gave.
const RECORD: &str = "dns-address";

/// Keeps the address in place until shutdown.
///
/// # Errors
/// When the kernel refuses, or the record cannot be written.
pub fn keep(
    wanted: IpAddr,
    state_dir: &Path,
    part: &Part,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let mut kernel = Netlink::open()?;
    let mut events = Events::open(&[Group::Links, Group::AddressesV4, Group::AddressesV6])?;
    remove_predecessor(&mut kernel, wanted, state_dir.join(RECORD))?;
    let mut look_at = Instant::now();
    while !shutdown.is_cancelled() {
        if Instant::now() >= look_at {
            if ensure(&mut kernel, wanted)? {
                tracing::info!(address = %wanted, "DNS address given to lo");
            }
            part.works();
            look_at = Instant::now() + AUDIT;
        }
        if let Some(Event::AddressGone(_) | Event::Link(_) | Event::Overrun) = events.next(TICK)? {
            look_at = Instant::now();
        }
    }
    Ok(())
}

/// Takes the recorded address back, and forgets it. Whether there was one.
///
/// # Errors
/// When the kernel refuses, or the record cannot be read or removed.
pub fn remove(state_dir: &Path) -> anyhow::Result<bool> {
    let record = state_dir.join(RECORD);
    let Some(address) = recorded(&record)? else {
        return Ok(false);
    };
    take_back(&mut Netlink::open()?, address)?;
    Ok(remove_file(&record)?)
}

/// The address that we gave.
fn recorded(record: &Path) -> anyhow::Result<Option<IpAddr>> {
    match std::fs::read_to_string(record) {
        Ok(text) => Ok(text.trim().parse().ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", record.display())),
    }
}

fn take_back(kernel: &mut impl Kernel, address: IpAddr) -> anyhow::Result<()> {
    let Some(lo) = kernel.link_named("lo")? else {
        return Ok(());
    };
    let address = Address::global(lo.index, IpNetwork::from(address));
    Ok(kernel.delete_address(&address).absent_is_fine()?)
}

/// Makes it so and returns whether it was not.
fn ensure(kernel: &mut impl Kernel, wanted: IpAddr) -> anyhow::Result<bool> {
    let lo = kernel
        .link_named("lo")?
        .context("this network namespace has no lo")?;
    if !lo.up {
        kernel.change_link(lo.index, &LinkChange::up())?;
    }
    let there = kernel.addresses(Some(lo.index))?;
    if there.iter().any(|address| address.network.ip() == wanted) {
        return Ok(!lo.up);
    }
    // Valid on this host only: as a global address it would be what masqueraded packets to the node's own pods come
    // from (`inet_select_addr` takes the first global one where the device has none).
    kernel.add_address(&Address {
        no_dad: true,
        scope: Scope::Host,
        ..Address::global(lo.index, IpNetwork::from(wanted))
    })?;
    Ok(true)
}

/// Takes back the address of an earlier configuration, and records the one of this.
fn remove_predecessor(kernel: &mut impl Kernel, wanted: IpAddr, record: PathBuf) -> anyhow::Result<()> {
    let predecessor = recorded(&record)?;
    if predecessor == Some(wanted) {
        return Ok(());
    }
    if let Some(old) = predecessor {
        take_back(kernel, old)?;
        tracing::info!(address = %old, "DNS address of the configuration before taken from lo");
    }
    std::fs::write(&record, format!("{wanted}\n")).with_context(|| format!("write {}", record.display()))
}

#[cfg(test)]
mod tests {
    use netlink::FakeKernel;

    use super::*;

    fn addresses(kernel: &mut FakeKernel) -> Vec<String> {
        let addresses = kernel.addresses(None).expect("the fake works");
        addresses
            .iter()
            .map(|address| address.network.to_string())
            .collect()
    }

    #[test]
    fn the_address_is_given_once_and_given_back_when_it_was_taken() {
        let mut kernel = FakeKernel::new();
        kernel.plug("lo", [0; 6], 65_536);
        let before = addresses(&mut kernel);
        let wanted: IpAddr = [10, 96, 0, 10].into();
        assert!(ensure(&mut kernel, wanted).expect("works"));
        assert!(!ensure(&mut kernel, wanted).expect("works"), "nothing to do");
        let mut expected = before.clone();
        expected.push("10.96.0.10/32".to_owned());
        assert_eq!(addresses(&mut kernel), expected);
        let lo = kernel.link_named("lo").expect("works").expect("there");
        kernel
            .delete_address(&Address::global(lo.index, IpNetwork::from(wanted)))
            .expect("there");
        assert!(ensure(&mut kernel, wanted).expect("works"));
        assert_eq!(addresses(&mut kernel), expected);
    }

    #[test]
    fn the_address_of_an_earlier_configuration_is_taken_back() {
        let record = std::env::temp_dir().join(format!("cwt-dns-address-{}", std::process::id()));
        let mut kernel = FakeKernel::new();
        kernel.plug("lo", [0; 6], 65_536);
        let before = addresses(&mut kernel);
        for address in [[10, 96, 0, 10], [10, 96, 0, 11]] {
            remove_predecessor(&mut kernel, address.into(), record.clone()).expect("works");
            ensure(&mut kernel, address.into()).expect("works");
        }
        let mut expected = before;
        expected.push("10.96.0.11/32".to_owned());
        assert_eq!(addresses(&mut kernel), expected);
        std::fs::remove_file(record).expect("it was written");
    }
}

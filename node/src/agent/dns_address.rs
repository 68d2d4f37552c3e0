//! The address that the DNS server of this node listens on, on the node's `lo`.
//!
//! It is put back when somebody takes it away, at once by the kernel's events and by looking every few seconds. It
//! stays when the agent ends. Which address we gave is kept in a file, so that a changed configuration does not leave
//! the old one behind; one that was there already is somebody else's.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use ipnetwork::IpNetwork;
use netlink::{AbsentIsFine, Address, Event, Events, Group, Kernel, LinkChange, Netlink, Scope};
use overlay::files::{remove_file, write_file};
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
    let record = state_dir.join(RECORD);
    remove_predecessor(&mut kernel, wanted, &record)?;
    let mut look_at = Instant::now();
    while !shutdown.is_cancelled() {
        if Instant::now() >= look_at {
            if ensure(&mut kernel, wanted, &record)? {
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

/// Whether an address is recorded.
pub fn has_record(state_dir: &Path) -> bool {
    state_dir.join(RECORD).exists()
}

/// Takes the recorded address back, and forgets it. Whether there was one.
///
/// # Errors
/// When the kernel refuses, or the record cannot be read or removed.
pub fn remove(state_dir: &Path) -> anyhow::Result<bool> {
    let record = state_dir.join(RECORD);
    let Some(address) = recorded(&record)? else {
        remove_file(&record)?; // what a crash left of a first one
        return Ok(false);
    };
    take_back(&mut Netlink::open()?, address)?;
    Ok(remove_file(&record)?)
}

/// The address that we gave.
fn recorded(record: &Path) -> anyhow::Result<Option<IpAddr>> {
    match std::fs::read_to_string(record) {
        Ok(text) => {
            let address = text.trim().parse();
            let address = address.with_context(|| format!("read {}: {text:?}", record.display()))?;
            Ok(Some(address))
        }
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

/// Makes it so and returns whether it was not. What we give is recorded before, so that a crash loses no trace of it.
fn ensure(kernel: &mut impl Kernel, wanted: IpAddr, record: &Path) -> anyhow::Result<bool> {
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
    if !matches!(recorded(record), Ok(Some(given)) if given == wanted) {
        let written = write_file(record, format!("{wanted}\n").as_bytes());
        written.with_context(|| format!("write {}", record.display()))?;
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

/// Takes back the address of an earlier configuration, and forgets it.
fn remove_predecessor(kernel: &mut impl Kernel, wanted: IpAddr, record: &Path) -> anyhow::Result<()> {
    let predecessor = recorded(record).unwrap_or_else(|error| {
        let error = format!("{error:#}");
        tracing::warn!(error, "an earlier DNS address, if there was one, stays on lo");
        None
    });
    let Some(old) = predecessor.filter(|old| *old != wanted) else {
        return Ok(());
    };
    take_back(kernel, old)?;
    tracing::info!(address = %old, "DNS address of the configuration before taken from lo");
    remove_file(record)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use netlink::FakeKernel;

    use super::*;

    fn addresses(kernel: &mut FakeKernel) -> Vec<String> {
        let addresses = kernel.addresses(None).expect("the fake works");
        addresses
            .iter()
            .map(|address| address.network.to_string())
            .collect()
    }

    /// A kernel with a `lo`, what it has, and a record that is not there.
    fn world(name: &str) -> (FakeKernel, Vec<String>, PathBuf) {
        let mut kernel = FakeKernel::new();
        kernel.plug("lo", [0; 6], 65_536);
        let before = addresses(&mut kernel);
        let record = std::env::temp_dir().join(format!("cwt-dns-address-{name}-{}", std::process::id()));
        (kernel, before, record)
    }

    fn delete(kernel: &mut FakeKernel, address: IpAddr) {
        let lo = kernel.link_named("lo").expect("works").expect("there");
        let address = Address::global(lo.index, IpNetwork::from(address));
        kernel.delete_address(&address).expect("there");
    }

    #[test]
    fn the_address_is_given_once_and_given_back_when_it_was_taken() {
        let (mut kernel, before, record) = world("given");
        let wanted: IpAddr = [10, 96, 0, 10].into();
        let ensured = |kernel: &mut FakeKernel| ensure(kernel, wanted, &record).expect("works");
        assert!(ensured(&mut kernel));
        assert!(!ensured(&mut kernel), "nothing to do");
        let mut expected = before.clone();
        expected.push("10.96.0.10/32".to_owned());
        assert_eq!(addresses(&mut kernel), expected);
        delete(&mut kernel, wanted);
        assert!(ensured(&mut kernel));
        assert_eq!(addresses(&mut kernel), expected);
        assert_eq!(recorded(&record).expect("readable"), Some(wanted));
        std::fs::remove_file(record).expect("it was written");
    }

    #[test]
    fn the_address_of_an_earlier_configuration_is_taken_back() {
        let (mut kernel, before, record) = world("earlier");
        for address in [[10, 96, 0, 10], [10, 96, 0, 11]] {
            remove_predecessor(&mut kernel, address.into(), &record).expect("works");
            ensure(&mut kernel, address.into(), &record).expect("works");
        }
        let mut expected = before;
        expected.push("10.96.0.11/32".to_owned());
        assert_eq!(addresses(&mut kernel), expected);
        std::fs::remove_file(record).expect("it was written");
    }

    #[test]
    fn an_address_that_somebody_else_gave_is_ours_only_once_we_had_to_give_it() {
        let (mut kernel, _, record) = world("others");
        let wanted: IpAddr = [10, 96, 0, 10].into();
        let lo = kernel.link_named("lo").expect("works").expect("there");
        let others = Address::global(lo.index, IpNetwork::from(wanted));
        kernel.add_address(&others).expect("works");
        remove_predecessor(&mut kernel, wanted, &record).expect("works");
        assert!(!ensure(&mut kernel, wanted, &record).expect("works"));
        assert_eq!(recorded(&record).expect("readable"), None);
        delete(&mut kernel, wanted);
        assert!(ensure(&mut kernel, wanted, &record).expect("works"));
        assert_eq!(recorded(&record).expect("readable"), Some(wanted));
        std::fs::remove_file(record).expect("it was written");
    }

    #[test]
    fn a_record_that_cannot_be_read_stays_until_another_address_is_given() {
        let (mut kernel, _, record) = world("torn");
        std::fs::write(&record, "10.96.").expect("writable");
        let error = recorded(&record).expect_err("it is no address");
        assert!(format!("{error:#}").contains("\"10.96.\""), "{error:#}");
        let wanted: IpAddr = [10, 96, 0, 10].into();
        remove_predecessor(&mut kernel, wanted, &record).expect("the node's DNS does not wait for it");
        recorded(&record).expect_err("still");
        ensure(&mut kernel, wanted, &record).expect("works");
        assert_eq!(recorded(&record).expect("readable"), Some(wanted));
        std::fs::remove_file(record).expect("it was written");
    }
}

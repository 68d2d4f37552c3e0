//! `testserver resolve`: prints the records that a name has, after the search list.

use std::time::Duration;

use crate::args::Args;
use crate::dns::{RecordType, Resolver};

/// `testserver resolve`.
pub fn run(args: &Args) -> Result<bool, String> {
    crate::exit_on_ending_signals()?;
    let name = args.positional(0).ok_or("resolve needs a NAME")?;
    let timeout = Duration::from_millis(args.value("timeout-ms", 5000)?);
    let resolver = Resolver::from_system(args.text("resolver"), timeout)?.over_tcp(args.flag("over-tcp"));
    let record_type = RecordType::parse(args.text("type").unwrap_or("A"))?;
    let name = match (record_type, name.parse()) {
        (RecordType::Ptr, Ok(address)) => crate::dns::reverse_name(address),
        _ => name.to_owned(),
    };
    match resolver.lookup(&name, record_type) {
        Ok(records) => {
            for record in &records {
                println!(
                    "{} {} {} {}",
                    record.name,
                    record.ttl,
                    record.record_type.name(),
                    record.data
                );
            }
            Ok(!records.is_empty())
        }
        Err(error) => {
            println!("{name}: {error}");
            Ok(false)
        }
    }
}

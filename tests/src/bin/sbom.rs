//! Prints the bill of materials of the programs, in CycloneDX's JSON.

use tests::packages::Packages;

fn main() -> anyhow::Result<()> {
    let bill = Packages::read()?.bill_of_materials(env!("CARGO_PKG_VERSION"));
    println!("{bill:#}");
    Ok(())
}

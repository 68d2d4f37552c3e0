//! Tells which instance this is and what interfaces it has, with the credentials that are there: what the manager would
//! see.

use vpc_eni::ec2::{Ec2, Metadata, Which};
use vpc_eni_sdk::{Client, ImdsMetadata, Settings};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let identity = ImdsMetadata::new(None)?.identity().await?;
    println!("{identity:#?}");
    let client = Client::new(Settings::from_env(&identity.region)).await?;
    println!("{:#?}", client.limits(&identity.instance_type).await?);
    for interface in client.interfaces(&Which::AttachedTo(identity.instance)).await? {
        println!("{interface:#?}");
    }
    Ok(())
}

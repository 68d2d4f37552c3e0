//! A cloud in a file.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use fake_vpc::Cloud;
use fake_vpc::cloud::{OpenError, RestoreError};
use fake_vpc::request::{Request, Search};
use tokio::time::{Duration, Instant};
use vpc_eni::ec2::{Amount, Ec2, Eni, EniId, Limits, NewEni};

use crate::support::{Http, SIGNED, World, form, tags, v4};

/// A directory, removed on drop.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("cwt-fake-vpc-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("account.json")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const HUGE: Limits = Limits {
    interfaces: 15,
    addresses_per_interface: 50,
    is_nitro: true,
};

/// What every Describe tells, byte for byte, but for the number of the request.
async fn told(cloud: &Cloud) -> Vec<String> {
    let http = Http::new(cloud);
    let mut told = Vec::new();
    for request in [
        Request::DescribeInstanceTypes(Search::default()),
        Request::DescribeInstances(Search::default()),
        Request::DescribeNetworkInterfaces(Search::default()),
        Request::DescribeSecurityGroups(Search::default()),
        Request::DescribeSubnets(Search::default()),
    ] {
        let (_, body) = http.post(&form(&request), &[SIGNED]).await.unwrap();
        told.push(body);
    }
    told
}

/// A world with some of everything in it, where time has passed.
async fn full_world() -> World {
    let world = World::new();
    tokio::time::advance(Duration::from_millis(90_700)).await;
    let cloud = &world.cloud;
    cloud
        .associate_network(&world.vpc, "100.64.0.0/16".parse().unwrap())
        .unwrap();
    cloud.make_instance_type("m99.huge", HUGE);
    cloud
        .make_instance_at("m99.huge", &world.tiny, &[], v4("10.0.2.9"))
        .unwrap();
    let over = cloud.make_instance("t3.small", &world.elsewhere, &[]).unwrap();
    cloud.terminate(&over).unwrap();
    cloud.occupy(&world.subnet, v4("10.0.1.200")).unwrap();
    for (index, amount) in [(1, Amount::Prefixes(2)), (2, Amount::PrefixesV6(1))] {
        world.attached(amount, index);
    }
    world.make(NewEni {
        tags: tags([("a", "1"), ("b", "")]),
        client_token: "free".to_owned(),
        ..world.new_eni(Amount::Addresses(3))
    });
    world
}

#[tokio::test(start_paused = true)]
async fn a_restored_cloud_tells_all_that_the_other_told() {
    let world = full_world().await;
    let restored = Cloud::restore(&world.cloud.save(), 7).unwrap();
    assert_eq!(told(&restored).await, told(&world.cloud).await);
    assert_eq!(restored.vpcs(), world.cloud.vpcs());
    assert_eq!(restored.vpcs().first(), Some(&world.vpc));
    assert_eq!(restored.subnets(&world.vpc), world.cloud.subnets(&world.vpc));
    assert_eq!(
        restored.default_group(&world.vpc),
        world.cloud.default_group(&world.vpc)
    );
    assert_eq!(restored.instances(), world.cloud.instances());
    let known: Vec<_> = restored
        .instances()
        .into_iter()
        .map(|machine| machine.instance_type)
        .collect();
    assert_eq!(known, ["m5.large", "m99.huge"], "and none that is terminated");
    assert_eq!(restored.save(), world.cloud.save());
}

#[tokio::test(start_paused = true)]
async fn a_restored_cloud_gives_what_the_other_would_have_given() {
    let world = full_world().await;
    let restored = Cloud::restore(&world.cloud.save(), 7).unwrap();
    for request in [
        Request::CreateNetworkInterface(world.new_eni(Amount::Addresses(2))),
        // The token is known, and what it made.
        Request::CreateNetworkInterface(NewEni {
            tags: tags([("a", "1"), ("b", "")]),
            client_token: "free".to_owned(),
            ..world.new_eni(Amount::Addresses(3))
        }),
        Request::CreateNetworkInterface(NewEni {
            client_token: "free".to_owned(),
            ..world.new_eni(Amount::Addresses(4))
        }),
        Request::AssignPrivateIpAddresses {
            eni: world.primary().id,
            amount: Amount::Addresses(1),
        },
    ] {
        let given = restored.meddle(&request);
        assert_eq!(given, world.cloud.meddle(&request), "{request:?}");
    }
    assert_eq!(restored.vacate(&world.subnet, v4("10.0.1.200")), Ok(()));
    assert_eq!(restored.occupy(&world.subnet, v4("10.0.1.200")), Ok(()));
    assert_eq!(restored.save(), world.cloud.save());
}

#[tokio::test(start_paused = true)]
async fn what_was_under_way_is_over() {
    let world = World::new();
    let (coming, going) = (
        world.attached(Amount::Addresses(1), 1),
        world.attached(Amount::Addresses(1), 2),
    );
    let hour = Duration::from_secs(3_600);
    world.cloud.set_weather(|weather| {
        weather.attaching = hour;
        weather.device_after = hour;
        weather.detaching = hour;
    });
    let detach = |eni: &Eni| Request::DetachNetworkInterface {
        attachment: eni.attachment.clone().unwrap().id,
    };
    world.cloud.meddle(&detach(&going)).unwrap();
    // Detached at once, so that it can be attached slowly.
    world
        .cloud
        .set_weather(|weather| weather.detaching = Duration::ZERO);
    world.cloud.meddle(&detach(&coming)).unwrap();
    world.attach(&coming.id, &world.instance, 1);
    assert_eq!(
        world.cloud.devices(&world.instance),
        [world.primary(), going.clone()]
    );

    let restored = Cloud::restore(&world.cloud.save(), 7).unwrap();
    let coming = world.cloud.interface(&coming.id).unwrap().eni;
    let status = |eni: &EniId| {
        let interface = restored.interface(eni).unwrap();
        interface.progress.map(|progress| progress.status(Instant::now()))
    };
    assert_eq!((status(&coming.id), status(&going.id)), (Some("attached"), None));
    assert_eq!(restored.devices(&world.instance), [world.primary(), coming]);
    assert_eq!(restored.interface(&going.id).unwrap().status(), "available");
}

#[tokio::test(start_paused = true)]
async fn a_text_that_is_no_account_says_so() {
    let text = full_world().await.cloud.save();
    let (subnet, last) = (full_world().await.subnet, r#""last_number":"#);
    let rows: Vec<(String, &str)> = vec![
        (String::new(), "not the account of a fake VPC"),
        ("[]".to_owned(), "not the account of a fake VPC"),
        (text[..text.len() / 2].to_owned(), "not the account of a fake VPC"),
        (
            text.replacen("clock_ms", "watch_ms", 1),
            "not the account of a fake VPC",
        ),
        (
            text.replacen(r#""account":{"#, r#""account":{"unheard_of":1,"#, 1),
            "not the account of a fake VPC",
        ),
        (
            r#"{"version":2,"all":"else is another"}"#.to_owned(),
            "written by another version: of form 2, and this program reads form 1",
        ),
        (
            format!("{}{last}1}}}}", text.rsplit_once(last).unwrap().0),
            "is no name that was given",
        ),
        (
            text.replace("m99.huge\":", "m98.huge\":"),
            "is of no type that is there",
        ),
        (
            text.replace("10.0.1.200", "10.0.1.4"),
            "has addresses that are not its own",
        ),
        (
            text.replace("10.0.2.9", "10.0.9.9"),
            "has addresses that are not its own",
        ),
        (
            text.replace("10.0.3.0/24", "10.9.3.0/24"),
            "is no subnet of its VPC",
        ),
        (
            text.replace("100.64.0.0/16", "0.0.0.0/0"),
            "has blocks that no VPC has",
        ),
        (
            text.replacen(&subnet.0, "subnet-00000000000000fff", 1),
            "is no name that was given",
        ),
    ];
    for (text, expected) in rows {
        let Err(error) = Cloud::restore(&text, 7) else {
            panic!("taken, not {expected}");
        };
        assert!(error.to_string().contains(expected), "{error}, not {expected}");
    }
}

#[tokio::test]
async fn a_change_is_in_the_file_before_it_is_answered() {
    let directory = Directory::new();
    let file = directory.file();
    let cloud = Cloud::open(&file, 7).unwrap();
    let vpc = cloud.make_vpc(&["10.0.0.0/16".parse().unwrap()]).unwrap();
    let zone = "eu-west-1a";
    let subnet = cloud
        .make_subnet(&vpc, "10.0.1.0/24".parse().unwrap(), zone, tags([]))
        .unwrap();
    let instance = cloud.make_instance("m5.large", &subnet, &[]).unwrap();
    let eni = cloud.interfaces_of(&instance)[0].eni.id.clone();
    let ec2 = cloud.client();
    let addresses = ec2.assign(&eni, Amount::Addresses(2)).await.unwrap();
    let again = Cloud::open(&file, 8).unwrap();
    assert_eq!(again.interface(&eni).unwrap().eni.secondary, addresses.secondary);
    cloud.limit_interfaces(1);
    cloud.make_instance_type("m99.huge", HUGE);
    let again = Cloud::open(&file, 8).unwrap();
    assert_eq!(again.client().limits("m99.huge").await, Ok(Some(HUGE)));
    let full = again.make_instance("m99.huge", &subnet, &[]).err().unwrap();
    assert_eq!(full.code, "NetworkInterfaceLimitExceeded");
}

#[tokio::test]
async fn what_cannot_be_kept_does_not_happen() {
    let directory = Directory::new();
    let cloud = Cloud::open(&directory.file(), 7).unwrap();
    std::fs::remove_dir_all(&directory.0).unwrap();
    let refused = cloud.make_vpc(&["10.0.0.0/16".parse().unwrap()]).err().unwrap();
    assert_eq!(refused.code, "InternalError");
    assert_eq!(cloud.vpcs(), []);
    std::fs::create_dir(&directory.0).unwrap();
    let vpc = cloud.make_vpc(&["10.0.0.0/16".parse().unwrap()]).unwrap();
    assert_eq!(Cloud::open(&directory.file(), 7).unwrap().vpcs(), [vpc]);
}

#[tokio::test]
async fn a_file_that_is_no_account_stays_as_it_is() {
    let directory = Directory::new();
    let file = directory.file();
    std::fs::write(&file, "{}").unwrap();
    let error = Cloud::open(&file, 7).err().expect("refused");
    assert!(
        matches!(&error, OpenError::Restore { path, source: RestoreError::Text(_) } if *path == file),
        "{error}"
    );
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "{}");

    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let error = Cloud::open(&file, 7).err().expect("refused");
    assert!(matches!(error, OpenError::Read { .. }), "{error}");
    let nowhere = directory.0.join("nowhere").join("account.json");
    let error = Cloud::open(&nowhere, 7).err().expect("refused");
    assert!(matches!(error, OpenError::Write { .. }), "{error}");
}

#[tokio::test]
async fn the_latest_two_hundred_client_tokens_are_remembered() {
    let world = World::new();
    let create = |token: usize| {
        let new = NewEni {
            client_token: format!("token {token}"),
            ..world.new_eni(Amount::Addresses(0))
        };
        world.make(new).id
    };
    let made: Vec<EniId> = (0..=200)
        .map(|token| {
            let eni = create(token);
            world.cloud.take_interface(&eni).unwrap();
            eni
        })
        .collect();
    assert_eq!(create(1), made[1]);
    assert_ne!(create(0), made[0]);
}

//! The pages, and the addresses that they are served at.

use std::time::Instant;

use model::IpFamily;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::agent::config_file::Fingerprint;
use crate::agent::progress::Pass;

fn sources(datapath: Datapath, proxy: Option<Arc<ProxyProgress>>) -> Sources {
    let config = serde_yaml_ng::from_str::<Config>("{nodeName: node-1, proxy: {datapath: none}}");
    Sources {
        config: tokio::sync::watch::channel(Arc::new(config.expect("valid"))).1,
        config_status: Arc::new(ConfigStatus::new(Fingerprint::of(""))),
        node: "node-1".into(),
        parts: Parts::default(),
        snapshots: tokio::sync::watch::channel(Arc::default()).1,
        history: History::default(),
        watches: watch::Status::default(),
        api_calls: watch::Calls::default(),
        traces: None,
        policies: None,
        datapath,
        proxy,
        pods: None,
        network: tokio::sync::watch::channel(None).1,
        fast_path: tokio::sync::watch::channel(fast_path::State::Off).1,
        vpc_eni: None,
        pin_dir: "/nowhere".into(),
        feed_readers: Arc::default(),
        dns_answers: None,
        cni_requests: Arc::default(),
        led_outside: Arc::default(),
        proven_ways: Arc::default(),
        sysctls: None,
        sysctl_repairs: Arc::default(),
        proxy_audits: Arc::default(),
        checks: Arc::default(),
        first_sync: FirstSync {
            snapshots: tokio::sync::watch::channel(Arc::default()).1,
            proxy: None,
            pods: None,
        },
    }
}

/// Whether somebody answers there.
fn answers(address: SocketAddr) -> bool {
    std::net::TcpStream::connect(address).is_ok()
}

#[tokio::test]
async fn an_address_answers_until_the_next_one_can_be_had() {
    let held = |address: &str| std::net::TcpListener::bind(address).expect("loopback is there");
    let address_of = |listener: &std::net::TcpListener| listener.local_addr().expect("bound");
    let first = address_of(&held("127.0.7.1:0"));
    let taken = held("127.0.7.2:0");
    let (sources, shutdown) = (sources(Datapath::None, None), CancellationToken::new());
    let at = |address: SocketAddr| {
        let config = sources.config.borrow().clone();
        Arc::new(Config {
            health_bind: address,
            ..Config::clone(&config)
        })
    };
    let (configs, config) = tokio::sync::watch::channel(at(first));
    let serving = Sources {
        config,
        ..sources.clone()
    };
    let part = sources.parts.part("health");
    let _serve = AbortOnDropHandle::new(tokio::spawn(serve_health(serving, part, shutdown)));
    let until = async |what: &str, condition: &dyn Fn(&Health) -> bool| {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !condition(&sources.parts.all()["health"].health) {
            assert!(Instant::now() < deadline, "{what}: {:?}", sources.parts.all());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    until("first", &|health| {
        matches!(health, Health::Working) && answers(first)
    })
    .await;

    let second = address_of(&taken);
    configs.send_replace(at(second));
    until(
        "taken",
        &|health| matches!(health, Health::Failing { error, .. } if error.contains(&second.to_string())),
    )
    .await;
    assert!(answers(first), "the old one goes on");

    configs.send_replace(at(first));
    until("back", &|health| matches!(health, Health::Working)).await;
    configs.send_replace(at(second));
    drop(taken);
    until("free", &|health| {
        matches!(health, Health::Working) && answers(second) && !answers(first)
    })
    .await;

    // The next one is a part of the one before, or the other way round.
    let everywhere = SocketAddr::from(([0, 0, 0, 0], second.port()));
    for (next, other) in [(everywhere, true), (second, false)] {
        configs.send_replace(at(next));
        let elsewhere = SocketAddr::from(([127, 0, 7, 3], second.port()));
        until("same port", &|health| {
            matches!(health, Health::Working) && answers(elsewhere) == other && answers(second)
        })
        .await;
    }
}

#[tokio::test]
async fn the_mode_is_the_datapaths_name() {
    let rows = [
        (Datapath::Ebpf, 200, "ebpf"),
        (Datapath::Nftables, 200, "nftables"),
        (Datapath::Iptables, 200, "iptables"),
        (Datapath::None, 404, ""),
    ];
    for (datapath, code, text) in rows {
        let response = proxy_mode(State(sources(datapath, None))).await;
        assert_eq!(response.status().as_u16(), code);
        let body = axum::body::to_bytes(response.into_body(), 4096).await;
        assert_eq!(body.expect("in memory"), text);
    }
}

#[test]
fn health_has_kube_proxys_fields_and_families_once_they_are_served() {
    let both = Arc::new(ProxyProgress::default());
    let starting = sources(Datapath::Ebpf, Some(both.clone())).health(true);
    assert_eq!(starting["status"], json!({}));
    assert_eq!(
        starting["lastUpdated"], starting["currentTime"],
        "nothing is late: {starting}"
    );

    both.done(Pass::Full, Duration::ZERO);
    let served = sources(Datapath::Ebpf, Some(both)).health(false);
    assert_eq!(served["nodeEligible"], false);
    for family in ["IPv4", "IPv6"] {
        let status = &served["status"][family];
        assert_eq!(status["healthy"], true, "{served}");
        let updated = status["lastUpdated"].as_str().expect("it was");
        assert!(updated.parse::<jiff::Timestamp>().is_ok(), "{served}");
    }

    let only_v4 = Arc::new(ProxyProgress::new([IpFamily::V4].into()));
    only_v4.done(Pass::Full, Duration::ZERO);
    let served = sources(Datapath::Ebpf, Some(only_v4)).health(true);
    assert_eq!(served["status"].get("IPv6"), None);
    assert_eq!(sources(Datapath::None, None).health(true)["status"], json!({}));
}

//! The choice of a peer for each request: `balance: hash` and `balance: random`.

use std::{collections::BTreeSet, fs, net::TcpListener};

use switchover::status::PeerStatus;

use crate::{
    limits::from_elsewhere,
    names::{can_unshare, with_hosts},
    support::{
        Client, ConfigFile, Origin, Switchover, eventually,
        origin::{Act, Gate, ok},
    },
};

const CLIENTS: u8 = 200;
const QUICK: &str = "health_check: {interval: 100ms}";

/// What a client is known by.
#[derive(Clone, Copy)]
enum Key {
    Header,
    Cookie,
    Address,
}

impl Key {
    /// The lines of a service that is balanced by it.
    fn service(self) -> String {
        let hash = match self {
            Self::Header => "header: X-User",
            Self::Cookie => "cookie: device",
            Self::Address => "client_address: true",
        };
        format!("balance: hash\nhash: {{{hash}}}\n{QUICK}")
    }

    /// The peer that a client's request goes to, over a new connection.
    fn peer_of(self, switchover: &Switchover, client: u8) -> String {
        let field = match self {
            Self::Header => format!("X-User: {client}"),
            Self::Cookie => format!("Cookie: a=b; device={client}"),
            Self::Address => "Accept: */*".to_owned(),
        };
        let mut connection = match self {
            Self::Header | Self::Cookie => switchover.client(),
            Self::Address => Client::over(from_elsewhere([127, 1, 1, client + 1], switchover.address)),
        };
        connection.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n")).unwrap();
        connection.read_response().unwrap().text()
    }

    /// The peers of all clients.
    fn peers(self, switchover: &Switchover) -> Vec<String> {
        (0..CLIENTS).map(|client| self.peer_of(switchover, client)).collect()
    }
}

fn await_ready(switchover: &Switchover, count: usize) {
    let ready = |peers: &[PeerStatus]| peers.len() == count && peers.iter().all(|peer| peer.ready);
    switchover.await_pool("blue", "all peers are ready", |pool| ready(&pool.peers));
}

fn start(names: &[&str], service: &str) -> (Vec<Origin>, ConfigFile, Switchover) {
    let origins: Vec<Origin> = names.iter().map(|name| Origin::start(name)).collect();
    let addresses: Vec<_> = origins.iter().map(Origin::address).collect();
    let config = ConfigFile::new(&[("blue", &addresses)]).service(service);
    let switchover = Switchover::start(&config);
    await_ready(&switchover, names.len());
    (origins, config, switchover)
}

/// A peer is created again at another address, as a container is; then a peer is added.
fn clients_stay(key: Key) {
    if !can_unshare() {
        return;
    }
    let peers = ["one", "two", "three", "four"].map(Origin::start);
    let [one, two, three, four] = [0, 1, 2, 3].map(|at| format!("{}.test:{}", at, peers[at].address().port()));
    let listener = TcpListener::bind(("127.0.0.2", peers[1].address().port())).unwrap();
    let mut config = ConfigFile::new(&[("blue", &[])]).service(&key.service());
    config.set_peers("blue", &[&one, &two, &three]);
    let hosts = config.folder().join("hosts");
    fs::write(&hosts, "127.0.0.1 0.test 1.test 2.test 3.test\n").unwrap();
    let switchover = Switchover::spawn(with_hosts(&config, &hosts), &config);
    await_ready(&switchover, 3);
    let before = key.peers(&switchover);
    assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), 3, "each peer has clients: {before:?}");

    peers[1].kill();
    let recreated = Origin::on_listener("two", listener);
    // A bind mount keeps its inode, so the file is written in place.
    fs::write(&hosts, "127.0.0.1 0.test 2.test 3.test\n127.0.0.2 1.test\n").unwrap();
    switchover.await_pool("blue", "the new address is ready", |pool| {
        pool.peers[1].ready && pool.peers[1].resolved == [recreated.address().to_string()]
    });
    assert_eq!(key.peers(&switchover), before);
    // Any edit of a service makes its pool again, now at the new address.
    config.write_in_place(&(config.text() + "    retries: 1\n"));
    assert_eq!(switchover.cli(&["reload"]).code, 0);
    assert_eq!(key.peers(&switchover), before);

    config.set_peers("blue", &[&one, &two, &three, &four]);
    await_ready(&switchover, 4);
    let after = key.peers(&switchover);
    let moved: Vec<&String> =
        before.iter().zip(&after).filter(|(before, after)| before != after).map(|(_, after)| after).collect();
    assert!(moved.iter().all(|peer| *peer == "four"), "{moved:?}");
    // A quarter is expected, 50 with a standard deviation of 6.1; these are six of them.
    assert!((13..=87).contains(&moved.len()), "{} of {CLIENTS} moved", moved.len());
}

#[test]
fn clients_by_header_stay_when_their_peer_is_created_again_and_few_move_to_an_added_one() {
    clients_stay(Key::Header);
}

#[test]
fn clients_by_cookie_stay_when_their_peer_is_created_again_and_few_move_to_an_added_one() {
    clients_stay(Key::Cookie);
}

#[test]
fn clients_by_address_stay_when_their_peer_is_created_again_and_few_move_to_an_added_one() {
    clients_stay(Key::Address);
}

#[test]
fn a_retry_and_a_peer_that_is_not_ready_lead_to_the_same_second_choice() {
    let key = Key::Header;
    let (origins, _config, switchover) = start(&["one", "two", "three"], &key.service());
    let first = key.peers(&switchover);
    origins[0].on("/", Act::Close);
    let retried = key.peers(&switchover);
    for (first, retried) in first.iter().zip(&retried) {
        assert!(retried != "one" && (first == "one" || first == retried), "{first} {retried}");
    }
    assert_eq!(retried.iter().collect::<BTreeSet<_>>().len(), 2, "the clients of one peer go to both others: {retried:?}");

    let await_first = |ready: bool| {
        switchover.await_pool("blue", "the readiness of the first peer", |pool| pool.peers[0].ready == ready);
    };
    origins[0].readiness(503, "");
    await_first(false);
    assert_eq!(key.peers(&switchover), retried);
    origins[0].on("/", Act::Say(ok("one"))).readiness(200, "");
    await_first(true);
    assert_eq!(key.peers(&switchover), first);
}

#[test]
fn an_edit_changes_the_key() {
    let (_origins, config, switchover) = start(&["one", "two", "three"], &Key::Cookie.service());
    let by_cookie = |expected: usize| {
        eventually("clients have this number of peers", || {
            let peers: BTreeSet<String> = Key::Cookie.peers(&switchover).into_iter().collect();
            if peers.len() == expected { Ok(()) } else { Err(peers) }
        });
    };
    by_cookie(3);
    // All of these clients have one address.
    config.replace_by_rename(&config.text().replace("cookie: device", "client_address: true"));
    by_cookie(1);
}

#[test]
fn random_chooses_every_idle_peer_and_the_less_loaded_of_two() {
    let (origins, _config, switchover) = start(&["one", "two", "three"], &format!("balance: random\n{QUICK}"));
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(switchover.get("/").text());
        switchover.await_in_flight("blue", 0);
    }
    assert_eq!(idle.iter().collect::<BTreeSet<_>>().len(), 3, "{idle:?}");
    assert!(idle.windows(2).any(|two| two[0] == two[1]), "peers take turns: {idle:?}");

    // Of two peers both are drawn each time, so their loads stay equal.
    origins[2].readiness(503, "");
    switchover.await_pool("blue", "the third peer is not ready", |pool| !pool.peers[2].ready);
    let gate = Gate::new();
    for origin in &origins {
        origin.on("/held", Act::SayHeld(gate.clone(), Vec::new(), ok("held")));
    }
    let mut held = Vec::new();
    let loads = || switchover.pool_status("blue").peers.iter().map(|peer| peer.in_flight).collect::<Vec<_>>();
    for count in 1..=40 {
        let mut client = switchover.client();
        client.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        held.push(client);
        switchover.await_in_flight("blue", count);
        let loads = loads();
        assert!(loads[0].abs_diff(loads[1]) <= 1 && loads[2] == 0, "{loads:?}");
    }
    gate.open();
    for mut client in held {
        assert_eq!(client.read_response().unwrap().text(), "held");
    }
}

#[test]
fn no_request_is_refused_during_a_slow_start() {
    for balance in ["least_requests", "round_robin", "random", "hash\nhash: {header: X-User}"] {
        let (origins, _config, switchover) = start(&["one", "two"], &format!("balance: {balance}\nslow_start: 1h\n{QUICK}"));
        let spread = || (0..CLIENTS).map(|client| Key::Header.peer_of(&switchover, client)).collect::<BTreeSet<_>>();
        // Both became ready a moment ago, so both have a share.
        assert_eq!(spread(), BTreeSet::from(["one".to_owned(), "two".to_owned()]), "{balance}");
        // One that is not ready has none, and begins again.
        origins[0].readiness(503, "");
        switchover.await_pool("blue", "the first peer is not ready", |pool| !pool.peers[0].ready);
        assert_eq!(spread(), BTreeSet::from(["two".to_owned()]), "{balance}");
        origins[0].readiness(200, "");
        await_ready(&switchover, 2);
        assert_eq!(spread(), BTreeSet::from(["one".to_owned(), "two".to_owned()]), "{balance}");
    }
}

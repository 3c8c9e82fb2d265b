//! Paths that can be written in several ways: none of them leads around `path_prefix` or the redirect to HTTPS.

use crate::support::{Client, ConfigFile, Origin, Switchover, eventually};

#[test]
fn a_path_leads_to_one_service_however_it_is_written_and_goes_on_as_it_was() {
    let (shop, admin) = (Origin::start("shop"), Origin::start("admin"));
    let config = ConfigFile::new(&[("blue", &[shop.address()])]);
    let service = |name: &str, prefix: &str, peer: &Origin| {
        format!(
            "  {name}:\n    path_prefix: {prefix}\n    active: blue\n    pools: {{blue: {{peers: [\"{}\"]}}}}\n",
            peer.address()
        )
    };
    let text = format!(
        "listeners:\n  - address: 127.0.0.1:0\nadmin: {{address: 127.0.0.1:0}}\nservices:\n{}{}",
        service("shop", "/", &shop),
        service("admin", "/admin", &admin),
    );
    config.write_in_place(&text);
    let switchover = Switchover::start(&config);
    eventually("both are ready", || {
        let ready = |path: &str| switchover.get(path).status == 200;
        if ready("/") && ready("/admin") { Ok(()) } else { Err(switchover.log()) }
    });
    for (target, expected) in [
        ("/admin", "admin"),
        ("//admin", "admin"),
        ("/%61dmin", "admin"),
        ("/./admin", "admin"),
        ("/x/../admin", "admin"),
        ("/x/%2e%2e/admin?a=/b", "admin"),
        ("/admin;x=y", "admin"),
        ("/x;y/..;z/admin", "admin"),
        ("/..;/admin", "admin"),
        ("/admin/a%2Fb", "admin"),
        ("/admin/../x", "shop"),
        ("/%2561dmin", "shop"),
        ("/a%2Fb", "shop"),
        ("/x?/../admin", "shop"),
        ("/admin%2f", "400"),
        ("/x%2F..%2Fadmin", "400"),
        ("/x\\..\\admin", "400"),
    ] {
        let (peer, seen) = if expected == "admin" { (&admin, admin.heads().len()) } else { (&shop, shop.heads().len()) };
        let answer = switchover.get(target);
        if expected == "400" {
            assert_eq!(answer.status, 400, "{target}: {}", answer.text());
        } else {
            assert_eq!(answer.text(), expected, "{target}");
            let head = peer.heads().swap_remove(seen);
            assert!(head.starts_with(&format!("GET {target} HTTP/1.1\r\n")), "{head}");
        }
    }
    let rejected = "switchover_rejected_requests_total{listener=\"127.0.0.1:0\",reason=\"bad_request\"}";
    assert_eq!(switchover.metric(rejected), Some(3.0));
}

#[test]
fn what_an_authority_asks_for_is_all_that_is_not_sent_to_https() {
    let blue = Origin::start("blue");
    let config = ConfigFile::new(&[("blue", &[blue.address()])]).listener("    redirect_to_https: true\n");
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let mut client: Client = switchover.client();
    for (rest, status) in [
        ("abc_-123", 200),
        ("", 301),
        ("../../admin", 301),
        ("%2e%2e/%2e%2e/admin", 301),
        ("..;/..;/admin", 301),
        ("..%2f..%2fadmin", 301),
        ("a/b", 301),
    ] {
        let target = format!("/.well-known/acme-challenge/{rest}");
        let answer = client.get(&target).unwrap();
        assert_eq!(answer.status, status, "{target}");
        if status == 301 {
            assert_eq!(answer.header("location"), Some(&*format!("https://shop.test{target}")));
        }
    }
}

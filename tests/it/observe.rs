//! The access log, trace headers and error pages.

use std::{fs, path::Path};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{
    ConfigFile, Origin, Switchover, eventually, one_pool,
    origin::{Act, ok},
};

fn logged(format: &str) -> (Origin, ConfigFile, Switchover) {
    one_pool(|config| {
        config
            .service("hosts: [shop.test]\ntimeouts: {response: 1s}\n")
            .top(&format!("access_log: {{format: {format}, file: access.log}}\n"))
    })
}

fn await_lines(file: &Path, count: usize) -> Vec<String> {
    eventually("the lines are there", || {
        let lines: Vec<String> = fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect();
        if lines.len() >= count { Ok(lines) } else { Err(lines) }
    })
}

#[test]
fn a_line_of_json_for_every_request_also_those_that_were_refused() {
    let (blue, config, switchover) = logged("json");
    let file = config.folder().join("access.log");
    blue.on("/slow", Act::Hang);
    let mut sent = 0;
    // A line is written after its answer, so the next request of another client waits for it.
    let mut send = |request: &str| {
        let mut client = switchover.client();
        client.send(request).unwrap();
        let status = client.read_response().unwrap().status;
        sent += 1;
        await_lines(&file, sent);
        status
    };
    let head = "Host: shop.test\r\nUser-Agent: a \"test\"\r\nReferer: http://shop.test/\r\nX-Request-Id: abc-1\r\n";
    assert_eq!(send(&format!("POST /a?b=c HTTP/1.1\r\n{head}Content-Length: 5\r\n\r\nhello")), 200);
    assert_eq!(send("GET /elsewhere HTTP/1.1\r\nHost: other.test\r\n\r\n"), 404);
    assert_eq!(send("GET /slow HTTP/1.1\r\nHost: shop.test\r\n\r\n"), 504);
    assert_eq!(send("GET / HTTP/1.1\r\n\r\n"), 400);
    blue.kill();
    assert_eq!(send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n"), 502);
    let lines: Vec<Value> = await_lines(&file, 5).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected = [
        (200, "ok", "shop", "/a?b=c"),
        (404, "no_route", "", "/elsewhere"),
        (504, "response_timeout", "shop", "/slow"),
        (400, "bad_request", "", ""),
        (502, "connect", "shop", "/"),
    ];
    for (line, (status, ended, service, target)) in lines.iter().zip(expected) {
        let seen = (line["status"].as_u64(), line["ended"].as_str(), line["service"].as_str(), line["target"].as_str());
        assert_eq!(seen, (Some(status), Some(ended), Some(service), Some(target)), "{line}");
        assert!(line["retries"] == 0 || status == 502, "{line}");
        assert_eq!((&line["client"], &line["listener"]), (&"127.0.0.1".into(), &"127.0.0.1:0".into()), "{line}");
    }
    let first = &lines[0];
    for (key, value) in [
        ("method", Value::from("POST")),
        ("host", "shop.test".into()),
        ("version", "HTTP/1.1".into()),
        ("tls", Value::Null),
        ("pool", "blue".into()),
        ("peer", blue.address().to_string().into()),
        ("bytes_sent", 4.into()),
        ("bytes_received", 5.into()),
        ("retries", 0.into()),
        ("request_id", "abc-1".into()),
        ("referer", "http://shop.test/".into()),
        ("user_agent", "a \"test\"".into()),
    ] {
        assert_eq!(first[key], value, "{key}: {first}");
    }
    let seconds = |key: &str| first[key].as_f64().unwrap_or_else(|| panic!("{key}: {first}"));
    assert!(seconds("duration") >= seconds("header") && seconds("connect") > 0.0, "{first}");
    assert!(humantime::parse_rfc3339(first["at"].as_str().unwrap()).is_ok());
    assert_eq!(lines[1]["request_id"].as_str().unwrap().len(), 32, "one that was made");
}

#[test]
fn a_line_of_text_is_combined_and_nothing_a_client_sends_can_end_it() {
    let (_blue, config, switchover) = logged("text");
    let mut client = switchover.client();
    client.send("GET /?x HTTP/1.1\r\nHost: shop.test\r\nUser-Agent: a\" 200 0 \"b\\\u{e9}\r\nX-Request-Id: abc\r\n\r\n").unwrap();
    assert_eq!(client.read_response().unwrap().status, 200);
    let line = await_lines(&config.folder().join("access.log"), 1).remove(0);
    let start = "127.0.0.1 - - [";
    let rest =
        format!("] \"GET /?x HTTP/1.1\" 200 4 \"-\" \"a\\x22 200 0 \\x22b\\x5C\\xC3\\xA9\" shop/blue/{} ", _blue.address());
    assert!(line.starts_with(start) && line.contains(&rest) && line.ends_with(" abc ok"), "{line}");
}

/// A full disk, which `/dev/full` is: the lines are counted, the log says it once, and when it is over.
#[test]
fn lines_lost_to_a_failed_write_are_counted() {
    let blue = Origin::start("blue");
    let config = ConfigFile::new(&[("blue", &[blue.address()])]).top("access_log: {format: json, file: access.log}\n");
    let file = config.folder().join("access.log");
    std::os::unix::fs::symlink("/dev/full", &file).unwrap();
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let dropped = |count: f64| {
        eventually("they are counted", || match switchover.metric("switchover_access_log_dropped_total") {
            Some(seen) if seen == count => Ok(()),
            other => Err(other),
        });
    };
    assert_eq!(switchover.get("/first").status, 200);
    dropped(1.0);
    assert_eq!(switchover.get("/second").status, 200);
    dropped(2.0);
    fs::remove_file(&file).unwrap();
    switchover.signal(Signal::SIGUSR1);
    eventually("the file is there again", || {
        assert_eq!(switchover.get("/again").status, 200);
        if file.exists() { Ok(()) } else { Err(switchover.log()) }
    });
    await_lines(&file, 1);
    let log = eventually("the log says that it is over", || {
        let log = switchover.log();
        if log.contains("the access log can be written again lines_lost=") { Ok(log) } else { Err(log) }
    });
    assert_eq!(log.matches("cannot write the access log").count(), 1, "{log}");
}

#[test]
fn a_log_that_is_moved_away_is_opened_again_and_no_line_is_lost() {
    let (_blue, config, switchover) = logged("json");
    let (file, moved) = (config.folder().join("access.log"), config.folder().join("access.log.1"));
    let get = |path: &str| {
        let mut client = switchover.client();
        client.send(format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\n\r\n")).unwrap();
        assert_eq!(client.read_response().unwrap().status, 200);
    };
    get("/before");
    await_lines(&file, 1);
    fs::rename(&file, &moved).unwrap();
    get("/between");
    await_lines(&moved, 2);
    switchover.signal(Signal::SIGUSR1);
    eventually("it is opened again", || {
        get("/after");
        if file.exists() { Ok(()) } else { Err(()) }
    });
    assert!(await_lines(&file, 1)[0].contains("/after"));
}

#[test]
fn a_reader_that_stops_reading_holds_up_no_request() {
    let blue = Origin::start("blue");
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    let pipe = config.folder().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // Opened for both, so that switchover can open it, and never read.
    let _reader = fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    let config = config.service("hosts: [shop.test]").top("access_log: {format: json, file: pipe}\n");
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    // More lines than the pipe and the queue in front of it can hold.
    for _ in 0..40 {
        let mut client = switchover.client();
        client.send("GET / HTTP/1.1\r\nHost: other.test\r\n\r\n".repeat(250)).unwrap();
        (0..250).for_each(|_| assert_eq!(client.read_response().unwrap().status, 404));
    }
    eventually("lines are dropped", || match switchover.metric("switchover_access_log_dropped_total") {
        Some(dropped) if dropped > 100.0 => Ok(()),
        other => Err(other),
    });
    assert_eq!(switchover.get("/").status, 200);
}

#[test]
fn a_log_that_cannot_be_written_ends_the_start() {
    let blue = Origin::start("blue");
    let config = ConfigFile::new(&[("blue", &[blue.address()])]).top("access_log: {format: json, file: nowhere/access.log}\n");
    let output = crate::support::switchover::run(&["run", "--config", config.path.to_str().unwrap()]);
    assert!(output.code == 78 && output.stderr.contains("access_log.file") && output.stderr.contains("nowhere"), "{output:?}");
}

#[test]
fn traces_pass_and_begin_here_if_asked_to() {
    let blue = Origin::start("blue");
    for (top, begins) in [("", false), ("tracing: propagate\n", true)] {
        let config = ConfigFile::new(&[("blue", &[blue.address()])]).top(top);
        let switchover = Switchover::start(&config);
        switchover.await_ready("blue");
        let head_for = |headers: &str| {
            let mut client = switchover.client();
            client.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{headers}\r\n")).unwrap();
            assert_eq!(client.read_response().unwrap().status, 200);
            blue.heads().pop().unwrap()
        };
        let theirs = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ntracestate: a=b\r\n";
        let head = head_for(theirs);
        assert!(head.contains(theirs), "{head}");
        let head = head_for("b3: 0af7651916cd43dd-b7ad6b7169203331-1\r\n");
        assert!(head.contains("b3: 0af7") && !head.contains("traceparent"), "{head}");
        let head = head_for("");
        let made = head.lines().find_map(|line| line.strip_prefix("traceparent: "));
        assert_eq!(made.is_some(), begins, "{head}");
        if let Some(made) = made {
            let lengths: Vec<usize> = made.split('-').map(str::len).collect();
            assert_eq!(lengths, [2, 32, 16, 2], "{made}");
        }
    }
}

#[test]
fn errors_are_shown_as_the_client_can_take_them() {
    let blue = Origin::start("blue");
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    fs::write(config.folder().join("502.html"), "<p>We are sorry. Tell us {request_id}.</p>").unwrap();
    let config = config.service("    health_check: {interval: 100ms}\n    error_pages: {502: 502.html}\n");
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    blue.kill();
    let get = |headers: &str| {
        let mut client = switchover.client();
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{headers}\r\n")).unwrap();
        client.read_response().unwrap()
    };
    let answer = get("Accept: text/html\r\nX-Request-Id: <abc>\r\n");
    assert_eq!((answer.status, answer.text()), (502, "<p>We are sorry. Tell us &lt;abc&gt;.</p>".to_owned()));
    assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(answer.header("x-request-id"), Some("<abc>"));
    let answer = get("Accept: application/json, */*\r\n");
    let json: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((&json["status"], &json["error"]), (&502.into(), &"the application did not answer".into()));
    assert_eq!(json["request_id"].as_str(), answer.header("x-request-id"));

    // A page is part of the configuration: a change of it is seen by a reload, and one that cannot be read is refused.
    fs::write(config.folder().join("502.html"), "<p>Soon.</p>").unwrap();
    assert_eq!(switchover.cli(&["reload"]).code, 0);
    assert_eq!(get("").text(), "<p>Soon.</p>");
    fs::remove_file(config.folder().join("502.html")).unwrap();
    let output = switchover.cli(&["reload"]);
    assert!(output.code == 78 && output.stderr.contains("services.shop.error_pages.502"), "{output:?}");
    assert_eq!(get("").text(), "<p>Soon.</p>");
}

/// An answer to HEAD has the header of an answer and no body, or the next answer would begin with it.
#[test]
fn an_error_in_answer_to_head_has_no_body() {
    let blue = Origin::start("blue");
    blue.on("/next", Act::Say(ok("next")));
    let config = ConfigFile::new(&[("blue", &[blue.address()])]).service("    hosts: [shop.test]\n");
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let mut client = switchover.client();
    client.send("HEAD /x HTTP/1.1\r\nHost: other.test\r\n\r\n").unwrap();
    assert_eq!(client.read_head().unwrap().status, 404);
    assert_eq!(client.get("/next").unwrap().text(), "next");
}

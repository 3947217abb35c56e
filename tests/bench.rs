//! `drawbridge bench` runs, its figures have their names, and what it says it measured it measured.
//! How fast is not asked here: a debug build on a busy machine says nothing.

use std::process::Command;

use serde_json::Value;

const KEYS: [&str; 8] = [
    "bare_messages_per_s",
    "cpu_us_per_message",
    "messages_per_s",
    "p50_ms",
    "p99_ms",
    "peak_rss_bytes",
    "ratio",
    "scenario",
];

fn bench(arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_drawbridge"))
        .arg("bench")
        .args(arguments)
        .output()
        .expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    serde_json::from_str(&said).unwrap_or_else(|e| panic!("no JSON: {e}\n{said}\n{errors}"))
}

fn check(figures: &Value) {
    let object = figures.as_object().expect("an object");
    let keys: Vec<&str> = object.keys().map(String::as_str).collect();
    assert_eq!(keys, KEYS, "the documented keys and no others");
    for key in ["messages_per_s", "p50_ms", "p99_ms"] {
        assert!(
            figures[key].as_f64().is_some_and(|n| n > 0.0),
            "{key}: {figures}"
        );
    }
    assert!(
        figures["p50_ms"].as_f64() <= figures["p99_ms"].as_f64(),
        "{figures}"
    );
    if cfg!(target_os = "linux") {
        for process in ["bridge", "broker", "sink"] {
            let used = &figures["cpu_us_per_message"][process];
            assert!(used.as_f64().is_some(), "{process}: {figures}");
        }
        assert!(
            figures["peak_rss_bytes"]
                .as_u64()
                .is_some_and(|n| n > 1 << 20),
            "{figures}"
        );
    }
}

/// The bench itself fails when a message is missing, wrong, unacknowledged, or not on `fed.in`.
#[test]
fn outbound_is_measured_beside_bare_and_every_message_arrives() {
    let figures = bench(&[
        "out",
        "--messages",
        "200",
        "--peers",
        "3",
        "--size",
        "700",
        "--compare",
        "bare",
        "--rounds",
        "1",
        "--json",
    ]);
    check(&figures);
    let rate = |key: &str| figures[key].as_f64().expect("a rate");
    let ratio = rate("messages_per_s") / rate("bare_messages_per_s");
    assert!((rate("ratio") - ratio).abs() < 0.01, "{figures}");
    assert!(
        figures["scenario"]
            .as_str()
            .is_some_and(|s| s.starts_with("out: 200 messages of 700 bytes, 3 peers")),
        "{figures}"
    );
}

#[test]
fn inbound_is_measured_and_every_event_is_on_fed_in() {
    let figures = bench(&[
        "in",
        "--messages",
        "200",
        "--peers",
        "3",
        "--connections",
        "8",
        "--sync",
        "always",
        "--json",
    ]);
    check(&figures);
    assert!(
        figures["ratio"].is_null() && figures["bare_messages_per_s"].is_null(),
        "{figures}"
    );
    assert!(
        figures["scenario"]
            .as_str()
            .is_some_and(|s| s.ends_with("8 connections, broker syncs always")),
        "{figures}"
    );
}

#[test]
fn bare_inbound_takes_the_same_requests() {
    let figures = bench(&[
        "in",
        "--messages",
        "100",
        "--peers",
        "2",
        "--connections",
        "4",
        "--compare",
        "bare",
        "--rounds",
        "1",
        "--json",
    ]);
    check(&figures);
    assert!(
        figures["bare_messages_per_s"]
            .as_f64()
            .is_some_and(|n| n > 0.0),
        "{figures}"
    );
}

/// Protocols besides UAM.
const OTHERS: [&str; 2] = ["voltchat", "paracord"];

#[test]
fn outbound_is_measured_over_every_protocol() {
    for protocol in OTHERS {
        let figures = bench(&[
            "out",
            "--protocol",
            protocol,
            "--messages",
            "100",
            "--peers",
            "2",
            "--compare",
            "bare",
            "--rounds",
            "1",
            "--json",
        ]);
        check(&figures);
        let scenario = figures["scenario"].as_str().unwrap_or_default();
        let named = format!("out over {protocol}: 100 messages of 1024 bytes, 2 peers");
        assert!(scenario.starts_with(&named), "{figures}");
        assert!(figures["ratio"].as_f64().is_some(), "{figures}");
    }
}

#[test]
fn inbound_is_measured_over_every_protocol() {
    for protocol in OTHERS {
        let figures = bench(&[
            "in",
            "--protocol",
            protocol,
            "--messages",
            "100",
            "--peers",
            "2",
            "--connections",
            "4",
            "--compare",
            "bare",
            "--rounds",
            "1",
            "--json",
        ]);
        check(&figures);
        assert!(figures["ratio"].as_f64().is_some(), "{figures}");
    }
}

#[test]
fn the_time_from_start_to_ready_is_measured() {
    let figures = bench(&["start", "--rounds", "1", "--rest", "0", "--json"]);
    for key in ["start_to_ready_ms", "first_start_to_ready_ms"] {
        assert!(
            figures[key].as_f64().is_some_and(|ms| ms > 0.0),
            "{key}: {figures}"
        );
    }
}

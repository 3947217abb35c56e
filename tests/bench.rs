//! `drawbridge bench` runs, its figures have their names, and what it says it measured it measured.
//! How fast is not asked here: a debug build on a busy machine says nothing.

use std::process::Command;

use serde_json::Value;

const KEYS: [&str; 12] = [
    "bare_cpu_us_per_message",
    "bare_messages_per_s",
    "bare_p99_ms",
    "cpu_ratio",
    "cpu_us_per_message",
    "messages_per_s",
    "p50_ms",
    "p99_ms",
    "p99_ratio",
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

fn positive(figures: &Value, keys: &[&str]) {
    for key in keys {
        let value = figures[*key].as_f64();
        assert!(value.is_some_and(|n| n > 0.0), "{key}: {figures}");
    }
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

/// A round of it fails unless every request is answered as one with a wrong signature.
#[test]
fn forged_requests_are_all_refused_by_the_bridge_and_by_bare() {
    let figures = bench(&[
        "forged",
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

/// It fails when a message is missing, or comes before its turn.
#[test]
fn the_queue_of_peers_that_were_down_is_drained_in_order() {
    let figures = bench(&[
        "drain",
        "--messages",
        "300",
        "--peers",
        "2",
        "--rounds",
        "1",
        "--json",
    ]);
    positive(
        &figures,
        &[
            "messages_per_s",
            "direct_messages_per_s",
            "ratio",
            "into_the_queue_per_s",
        ],
    );
}

/// It fails unless every message waits in the ledger afterwards.
#[test]
fn what_peers_that_are_down_are_sent_is_queued_beside_the_store_alone() {
    let figures = bench(&[
        "spill",
        "--messages",
        "200",
        "--peers",
        "2",
        "--rounds",
        "1",
        "--json",
    ]);
    positive(&figures, &["messages_per_s", "store_rows_per_s", "ratio"]);
}

#[test]
fn healthy_peers_are_measured_beside_sick_ones() {
    let figures = bench(&[
        "dead",
        "--messages",
        "100",
        "--peers",
        "12",
        "--healthy",
        "3",
        "--each",
        "1",
        "--rest",
        "0",
        "--rounds",
        "1",
        "--json",
    ]);
    positive(
        &figures,
        &[
            "healthy_messages_per_s",
            "ratio",
            "p99_ratio",
            "all_messages_per_s",
        ],
    );
}

#[test]
fn a_bridge_with_a_full_queue_is_measured() {
    let figures = bench(&[
        "million",
        "--queued",
        "500",
        "--dead",
        "3",
        "--healthy",
        "2",
        "--messages",
        "50",
        "--rate",
        "100",
        "--starts",
        "1",
        "--rest",
        "0",
        "--json",
    ]);
    positive(
        &figures,
        &[
            "queued_per_s",
            "start_to_ready_ms",
            "p99_ratio",
            "messages_per_s",
        ],
    );
}

#[test]
fn a_bridge_at_rest_is_measured_alone_and_with_known_peers() {
    let figures = bench(&["idle", "--known", "50", "--rest", "0", "--json"]);
    positive(&figures, &["start_to_ready_ms", "start_to_ready_known_ms"]);
}

/// Every honest message is taken in spite of the flood, or it fails.
#[test]
fn honest_peers_are_measured_in_a_flood_of_bad_requests() {
    let figures = bench(&[
        "flood",
        "--messages",
        "100",
        "--peers",
        "2",
        "--connections",
        "4",
        "--addresses",
        "20",
        "--rounds",
        "1",
        "--rising",
        "0",
        "--json",
    ]);
    positive(
        &figures,
        &[
            "messages_per_s",
            "ratio",
            "full_ratio",
            "flood_requests_per_s",
        ],
    );
    let answers = figures["flood_answers"].as_object().expect("by status");
    assert!(
        !answers.contains_key("200"),
        "a bad request was taken: {figures}"
    );
}

/// It fails when anything is lost, out of turn, or on FED_IN twice.
#[test]
fn a_soak_with_kills_loses_nothing() {
    let figures = bench(&[
        "soak",
        "--minutes",
        "0.05",
        "--restart",
        "1",
        "--kill",
        "--out-rate",
        "50",
        "--in-rate",
        "50",
        "--sample",
        "0.2",
        "--peers",
        "2",
        "--json",
    ]);
    positive(
        &figures,
        &["restarts", "out_messages", "in_messages", "rss_max_bytes"],
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

//! `drawbridge peers …` over Paracord, by the binary beside running bridges: what an operator sees before
//! trusting a server, and what of it is trusted.

use std::process::Stdio;

use serde_json::Value;

use support::para_world::{Para, Setup};

#[path = "support"]
#[allow(
    dead_code,
    reason = "shared by several test binaries, each uses its part"
)]
mod support {
    pub mod bridge;
    pub mod checker;
    pub mod nats;
    pub mod para_world;
    pub mod paracord_client;
    pub mod traffic;
    pub mod uam_client;
}

/// What a command printed, and whether it ended well.
async fn run(bridge: &Para, args: &[&str]) -> (String, bool) {
    let out = tokio::process::Command::new(env!("CARGO_BIN_EXE_drawbridge"))
        .args(args)
        .arg("--config")
        .arg(bridge.write())
        .stdin(Stdio::null())
        .output()
        .await
        .expect("the binary runs");
    let said = [out.stdout, out.stderr].concat();
    (
        String::from_utf8_lossy(&said).into_owned(),
        out.status.success(),
    )
}

async fn fingerprint(bridge: &Para) -> String {
    let (said, well) = run(bridge, &["keys", "list", "--json"]).await;
    assert!(well, "{said}");
    let keys = said
        .lines()
        .filter_map(|l| serde_json::from_str::<Value>(l).ok());
    let mut own = keys.filter(|key| key["protocol"] == "paracord");
    let own = own.next().unwrap_or_else(|| panic!("no key: {said}"));
    own["fingerprint"].as_str().expect("a text").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_looked_up_shown_and_trusted_by_the_fingerprint_that_was_shown() {
    let a = Para::here(Setup::new("a.test")).await;
    let b = Para::here(Setup::new("b.test")).await;
    let url = format!("http://{}", b.setup.address);
    let print = fingerprint(&b).await;

    let (said, well) = run(&a, &["peers", "add", "paracord", "b.test", "--url", &url]).await;
    assert!(well, "{said}");
    for part in [
        "domain      b.test",
        &url,
        &print,
        "peers accept paracord b.test",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // Nobody is there to be asked.
    let (said, well) = run(&a, &["peers", "accept", "b.test"]).await;
    assert!(!well && said.contains("--yes"), "{said}");
    assert!(
        said.contains(&print) && said.contains("not https"),
        "{said}"
    );

    let other = "00".repeat(32);
    let accept = ["peers", "accept", "b.test", "--yes", "--fingerprint"];
    let (said, well) = run(&a, &[&accept[..], &[&other]].concat()).await;
    assert!(
        !well && said.contains("no key with that fingerprint"),
        "{said}"
    );
    let (said, well) = run(&a, &[&accept[..], &[&print]].concat()).await;
    assert!(well && said.contains("b.test is trusted."), "{said}");

    let (said, well) = run(&a, &["peers", "show", "b.test"]).await;
    assert!(well, "{said}");
    for part in ["b.test over paracord", "b.test (fixed)", "trusted", &print] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let (said, well) = run(&a, &["peers", "list"]).await;
    assert!(well, "{said}");
    let row = said.lines().find(|line| line.contains("b.test"));
    let row = row.unwrap_or_else(|| panic!("no row: {said}"));
    assert!(
        row.starts_with("paracord") && row.contains("trusted"),
        "{said}"
    );

    let (said, well) = run(&a, &["peers", "reject", "b.test"]).await;
    assert!(well && said.contains("b.test is rejected"), "{said}");
    let (said, well) = run(&a, &["peers", "remove", "b.test"]).await;
    assert!(well && said.contains("b.test is removed"), "{said}");
    let (said, well) = run(&a, &["peers", "accept", "paracord", "b.test", "--yes"]).await;
    assert!(
        !well && said.contains("no Paracord server is known"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_looked_up_says_why_and_options_of_another_protocol_are_refused() {
    let a = Para::here(Setup::new("a.test")).await;
    let nobody = support::bridge::free_address();
    let url = format!("http://{nobody}");
    let (said, well) = run(&a, &["peers", "add", "paracord", "b.test", "--url", &url]).await;
    assert!(!well && said.contains(&nobody.to_string()), "{said}");
    let own = format!("http://{}", a.setup.address);
    let (said, well) = run(&a, &["peers", "add", "paracord", "b.test", "--url", &own]).await;
    assert!(!well && said.contains("a.test"), "{said}");
    let (said, well) = run(&a, &["peers", "add", "paracord", "b.test", "--again"]).await;
    assert!(!well && said.contains("the name it gives itself"), "{said}");
    let (said, well) = run(&a, &["peers", "add", "uam", "b.test"]).await;
    assert!(!well && said.contains("voltchat, paracord"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_knows_our_key_and_finds_it_on_our_page() {
    let a = Para::here(Setup::new("a.test")).await;
    let print = fingerprint(&a).await;
    let (said, _) = run(&a, &["check"]).await;
    assert!(said.contains(&print), "{said}");
    let page = format!(
        "http://{}/_paracord/federation/v1/keys answers",
        a.setup.address
    );
    assert!(said.contains(&page), "{said}");
}

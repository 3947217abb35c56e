//! `drawbridge verify uam`: saved requests that a proxy in front has changed, by the command itself;
//! and `drawbridge verify paracord`.

#[path = "verify/paracord.rs"]
mod paracord;
mod support {
    pub mod uam_client;
}

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use support::uam_client::{Delivery, delivery, envelope, public_of};

const PATH: &str = "/api/v1/federation/deliver";

/// A folder with a configuration for `beta.test`, reached at `relay.beta.test`.
struct Desk {
    dir: tempfile::TempDir,
    config: PathBuf,
}

/// What the command said.
struct Said {
    steps: Vec<Value>,
    success: bool,
}

impl Said {
    /// Result and text of the first step of a name.
    fn step(&self, name: &str) -> (Option<bool>, &str) {
        let step = self.steps.iter().find(|s| s["name"] == name);
        let step = step.unwrap_or_else(|| panic!("no step {name}: {:#?}", self.steps));
        (
            step["ok"].as_bool(),
            step["detail"].as_str().unwrap_or_default(),
        )
    }
}

impl Desk {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let config = dir.path().join("beta.toml");
        let text = "[uam]\ndomain = \"beta.test\"\nhttp_url = \"https://relay.beta.test\"\n";
        std::fs::write(&config, text).expect("a configuration");
        Self { dir, config }
    }

    fn verify(&self, request: &[u8]) -> Said {
        let file = self.dir.path().join("request.http");
        std::fs::write(&file, request).expect("a file");
        let output = Command::new(env!("CARGO_BIN_EXE_drawbridge"))
            .args([
                "verify",
                "uam",
                "--json",
                "--relay-key",
                &public_of("alpha.test"),
            ])
            .args(["--agent-key", &public_of("ann::alpha.test"), "--config"])
            .arg(&self.config)
            .arg("--request")
            .arg(&file)
            .output()
            .expect("the command runs");
        let text = String::from_utf8_lossy(&output.stdout);
        Said {
            steps: text
                .lines()
                .map(|line| serde_json::from_str(line).expect("a JSON object a line"))
                .collect(),
            success: output.status.success(),
        }
    }
}

fn request() -> Delivery {
    let text = "<hello & goodbye>";
    let mut letter = envelope("m-1", "ann::alpha.test", "bob::beta.test", text);
    // Unsigned by the agent, signed by the relay.
    letter["note"] = text.into();
    delivery("alpha.test", &letter, true)
}

/// As it arrived: at this path, with these headers besides the signature.
fn http(path: &str, headers: &str, body: &str, signature: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\n{headers}Content-Type: application/json\r\n\
         Content-Length: {}\r\nX-UAM-Relay-Signature: {signature}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[test]
fn the_proxys_host_rewriting_is_diagnosed_by_verify() {
    let (desk, sent) = (Desk::new(), request());
    let at = |headers: &str| desk.verify(&http(PATH, headers, &sent.body, &sent.signature));

    let whole = at("Host: relay.beta.test\r\n");
    assert_eq!(whole.step("host").0, Some(true));
    assert!(whole.success, "{:#?}", whole.steps);

    // What a proxy with its own upstream's name makes of it, with and without telling.
    for told in [
        "X-Forwarded-Host: relay.beta.test\r\n",
        "Forwarded: for=192.0.2.7;host=\"relay.beta.test:443\";proto=https\r\n",
    ] {
        let rewritten = at(&format!("Host: 127.0.0.1:8000\r\n{told}"));
        let (ok, said) = rewritten.step("host");
        assert_eq!(ok, None, "it refuses nothing");
        assert!(
            said.starts_with("rewritten: the sender addressed relay.beta.test"),
            "{said}"
        );
        assert!(
            said.contains("127.0.0.1:8000") && said.contains("proxy_set_header Host"),
            "{said}"
        );
        assert!(said.contains("not why a signature fails"), "{said}");
        assert_eq!(rewritten.step("relay signature").0, Some(true));
        assert!(rewritten.success);
    }
    let silent = at("Host: drawbridge:8000\r\n");
    let (_, said) = silent.step("host");
    assert!(
        said.contains("drawbridge:8000 is not relay.beta.test or beta.test"),
        "{said}"
    );
}

#[test]
fn a_path_that_a_proxy_changed_is_named_with_what_it_took_or_added() {
    let (desk, sent) = (Desk::new(), request());
    for (path, part) in [
        ("/uam/api/v1/federation/deliver", "has \"/uam\" before"),
        ("/federation/deliver", "took \"/api/v1\" away"),
        (
            "//api/v1/federation/deliver/",
            "differs from /api/v1/federation/deliver by slashes",
        ),
        ("/inbox", "is not POST /api/v1/federation/deliver"),
    ] {
        let said = desk.verify(&http(
            path,
            "Host: beta.test\r\n",
            &sent.body,
            &sent.signature,
        ));
        let (ok, text) = said.step("route");
        assert_eq!(ok, Some(false));
        assert!(text.contains(part), "{path}: {text}");
        assert!(text.contains("not signed"), "{path}: {text}");
        assert!(!said.success);
    }
}

#[test]
fn a_body_that_something_on_the_way_wrote_anew_is_recognised() {
    let (desk, sent) = (Desk::new(), request());
    let escaped = sent
        .body
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let said = desk.verify(&http(
        PATH,
        "Host: beta.test\r\n",
        &escaped,
        &sent.signature,
    ));
    assert_eq!(said.step("relay signature").0, Some(false));
    assert!(
        said.step("hint").1.contains("as if it were HTML"),
        "{}",
        said.step("hint").1
    );

    // Spaces, order and escapes are not values: nothing is wrong with such a body.
    let parsed: Value = serde_json::from_str(&sent.body).expect("JSON");
    let pretty = serde_json::to_string_pretty(&parsed).expect("JSON");
    let said = desk.verify(&http(PATH, "Host: beta.test\r\n", &pretty, &sent.signature));
    assert_eq!(said.step("relay signature").0, Some(true));
    assert!(said.success, "{:#?}", said.steps);
}

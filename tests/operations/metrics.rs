//! The table in `config/metrics.md` against what there is and what is shown after traffic.

use std::collections::{BTreeMap, BTreeSet};

use drawbridge::ops::metrics::{self, Described};

use super::world::{Peer, World, within};
use crate::support::uam_client::{self, Posted};

/// One row of the table.
struct Row {
    described: Described,
    labels: BTreeSet<String>,
    meaning: String,
}

fn table() -> Vec<Row> {
    let text = include_str!("../../config/metrics.md");
    let rows = text.lines().filter(|l| l.starts_with("| `drawbridge_"));
    rows.map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, unit, labels, meaning] = cells[..] else {
            panic!("five columns: {line}");
        };
        let label = |l: &str| l.trim().trim_matches('`').to_owned();
        Row {
            described: Described {
                name: name.trim_matches('`').to_owned(),
                kind: kind.to_owned(),
                unit: Some(unit.to_owned()).filter(|u| !u.is_empty()),
            },
            labels: labels
                .split(',')
                .map(label)
                .filter(|l| !l.is_empty())
                .collect(),
            meaning: meaning.to_owned(),
        }
    })
    .collect()
}

#[test]
fn the_table_names_every_metric_there_is_and_no_other_with_its_type_and_unit() {
    let mut told: Vec<_> = table().into_iter().map(|row| row.described).collect();
    let mut there = metrics::described();
    told.sort();
    there.sort();
    assert_eq!(told, there);
    for row in table() {
        let Described { name, kind, unit } = &row.described;
        assert!(row.meaning.len() > 10, "{name} wants a meaning");
        let base = name.strip_suffix("_total").unwrap_or(name);
        for other in ["_ms", "_milliseconds", "_minutes", "_kilobytes", "_percent"] {
            assert!(!base.ends_with(other), "{name} is not in a base unit");
        }
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
        if let Some(unit) = unit {
            assert!(base.ends_with(unit), "{name} is in {unit}");
        }
        assert!(!row.labels.contains("peer"), "{name}: peers are not labels");
    }
}

/// What a scrape shows: kind and unit by family, label names by sample.
#[derive(Default)]
struct Scrape {
    kinds: BTreeMap<String, String>,
    units: BTreeMap<String, String>,
    samples: Vec<(String, BTreeSet<String>)>,
}

fn read(text: &str) -> Scrape {
    let mut scrape = Scrape::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                scrape.kinds.insert(name.to_owned(), kind.to_owned());
            }
            (Some("#"), Some("UNIT"), Some(name), Some(unit)) => {
                scrape.units.insert(name.to_owned(), unit.to_owned());
            }
            (Some("#"), ..) => {}
            _ => {
                let (name, labels) = line.split_once('{').map_or_else(
                    || (line.split(' ').next().unwrap_or_default(), ""),
                    |(name, rest)| (name, rest.rsplit_once('}').map_or("", |(l, _)| l)),
                );
                let names = labels.split("\",").filter_map(|l| l.split_once('='));
                scrape
                    .samples
                    .push((name.to_owned(), names.map(|(n, _)| n.to_owned()).collect()));
            }
        }
    }
    scrape
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_bridge_shows_after_traffic_what_the_table_says_and_nothing_else() {
    let mut world = World::new("discovery = false\nretry_delays = [\"10ms\"]", "").await;
    let beta = Peer::start(world.dir.path(), "beta.test", "ok").await;
    let gone = Peer::start(world.dir.path(), "gone.test", "status 500").await;
    world.rewrite(|text| format!("{text}\n{}\n{}", beta.pin, gone.pin));
    world.bridge.start().await;
    let id = world.publish("beta.test", &[]).await;
    beta.gets(&id).await;
    world.publish("gone.test", &[]).await;
    let client = crate::support::bridge::client();
    let post = async |relay: &str| {
        let id = uam_client::message_id();
        let envelope = uam_client::envelope(&id, "bob::beta.test", "alice::alpha.test", "hello");
        let delivery = uam_client::delivery_signed_by("beta.test", relay, &envelope, false);
        uam_client::post(&client, &world.bridge.public_url(), &delivery).await
    };
    assert_eq!(post("beta.test").await, Posted::Ok { duplicate: false });
    assert!(matches!(post("forged").await, Posted::Refused(401, _)));
    world.bridge.signal("HUP");
    world.logs("the configuration was read again").await;
    let text = within("the failing peer's message is dead", async || {
        let text = world.bridge.metrics().await;
        text.contains("drawbridge_dead_total{").then_some(text)
    })
    .await;

    let rows: BTreeMap<String, Row> = table()
        .into_iter()
        .map(|row| (row.described.name.clone(), row))
        .collect();
    let scrape = read(&text);
    let mut shown = BTreeSet::new();
    for (sample, mut labels) in scrape.samples {
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|end| sample.strip_suffix(end))
            .find(|name| rows.contains_key(*name))
            .unwrap_or(&sample);
        let row = rows
            .get(family)
            .unwrap_or_else(|| panic!("{sample} is not in config/metrics.md"));
        if sample.ends_with("_bucket") {
            labels.remove("le");
        }
        assert_eq!(labels, row.labels, "labels of {sample}");
        let base = family
            .strip_suffix("_total")
            .or_else(|| family.strip_suffix("_info"))
            .unwrap_or(family);
        assert_eq!(
            scrape.kinds.get(base),
            Some(&row.described.kind),
            "{sample}"
        );
        assert_eq!(
            scrape.units.get(base),
            row.described.unit.as_ref(),
            "{sample}"
        );
        shown.insert(family.to_owned());
    }
    // What needs a rare event to show; everything else must have been there.
    let rare = [
        "drawbridge_duplicate_first_attempt_total",
        "drawbridge_probes_total",
        "drawbridge_queue_stranded",
    ];
    let missing: Vec<_> = rows
        .keys()
        .filter(|name| !shown.contains(*name) && !rare.contains(&name.as_str()))
        .collect();
    assert!(
        missing.is_empty(),
        "not shown after traffic: {missing:?}\n{text}"
    );
    assert!(text.contains("outcome=\"delivered\"") && text.contains("outcome=\"retry\""));
    assert!(text.contains("drawbridge_refusals_total{protocol=\"uam\",reason="));
}

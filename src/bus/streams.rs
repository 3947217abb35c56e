//! The streams that the contract needs, from `streams/*.json` (the JSON that
//! `nats stream add --config` takes).
//!
//! Promise: what is missing is made, a difference is said in a sentence, nothing is ever deleted,
//! shrunk or changed. A difference of `FED_OUT` that would lose messages or their order is an
//! error: no message is pulled from a stream that cannot keep the promises.

use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType};
use serde::Serialize;
use serde_json::Value;

use super::publish::js_error;
use super::{Bus, BusError, BusErrorKind};
use crate::config::{NatsConfig, StreamPolicy};

const FILES: [(&str, &str); 5] = [
    ("fed_out.json", include_str!("../../streams/fed_out.json")),
    ("fed_in.json", include_str!("../../streams/fed_in.json")),
    ("fed_held.json", include_str!("../../streams/fed_held.json")),
    ("fed_dead.json", include_str!("../../streams/fed_dead.json")),
    ("fed_ops.json", include_str!("../../streams/fed_ops.json")),
];

/// Settings that are compared; the others are the operator's (placement, description).
const COMPARED: [&str; 9] = [
    "subjects",
    "retention",
    "discard",
    "storage",
    "max_age",
    "max_bytes",
    "max_msgs",
    "duplicate_window",
    "subject_transform",
];

/// A stream's name under a prefix: `FED_OUT` is `FED_OUT` under `fed` and `ACME_X_OUT` under
/// `acme.x`, so that two bridges can share a broker.
pub fn stream_name(prefix: &str, logical: &str) -> String {
    let upper = prefix.replace('.', "_").to_ascii_uppercase();
    format!("{upper}{}", logical.strip_prefix("FED").unwrap_or(logical))
}

/// The definition of a stream under these settings, by its contract name or the one under the prefix;
/// `None`: there is no
/// such stream in the contract.
pub fn stream_definition(name: &str, config: &NatsConfig) -> Result<Option<Value>, BusError> {
    for (file, text) in FILES {
        let wanted = definition(file, text, &config.prefix, Counts::of(config))?;
        if wanted.name == name || file.trim_end_matches(".json").eq_ignore_ascii_case(name) {
            let json = serde_json::to_value(&wanted);
            return json
                .map(Some)
                .map_err(|e| BusError::new(BusErrorKind::Config, format!("streams/{file}: {e}")));
        }
    }
    Ok(None)
}

/// One stream of the contract as it is, beside what it should be.
#[derive(Clone, Debug, Serialize)]
pub struct StreamReport {
    /// `FED_OUT`, whatever the prefix.
    pub contract: String,
    /// Its real name.
    pub name: String,
    /// None: it does not exist.
    pub state: Option<StreamState>,
    /// Differences from the definition, one sentence each.
    pub differences: Vec<String>,
    /// Why the bridge would not work with it.
    pub broken: Option<String>,
    /// The definition, in the JSON that `nats stream add --config` takes.
    pub definition: Value,
}

/// What a stream holds and how.
#[derive(Clone, Debug, Serialize)]
pub struct StreamState {
    pub messages: u64,
    pub bytes: u64,
    pub first_seq: u64,
    pub last_seq: u64,
    pub consumers: usize,
    pub storage: &'static str,
    pub replicas: usize,
    /// Server that leads it, in a cluster.
    pub leader: Option<String>,
}

impl Bus {
    /// Applies `streams/*.json` by policy (`ensure | verify | off`); answers the differences as
    /// sentences. `ensure` makes what is missing; under `verify` a missing stream is an error.
    pub async fn apply_streams(&self) -> Result<Vec<String>, BusError> {
        let policy = self.inner.config.streams;
        if policy == StreamPolicy::Off {
            return Ok(Vec::new());
        }
        let mut said = Vec::new();
        for file in FILES {
            said.extend(self.apply(file, policy).await?);
        }
        Ok(said)
    }

    /// The same for one stream, by its contract name (`FED_OUT`): who needs that one does not wait
    /// for others, which in a cluster may be without a leader for seconds.
    pub async fn apply_stream(&self, contract: &str) -> Result<(), BusError> {
        let policy = self.inner.config.streams;
        let wanted = |file: &str| {
            let name = file.trim_end_matches(".json");
            name.eq_ignore_ascii_case(contract)
        };
        match FILES.into_iter().find(|(file, _)| wanted(file)) {
            Some(file) if policy != StreamPolicy::Off => self.apply(file, policy).await.map(drop),
            _ => Ok(()),
        }
    }

    /// Compares one stream and makes it when it is missing and may be made; answers the differences.
    async fn apply(
        &self,
        file: (&'static str, &'static str),
        policy: StreamPolicy,
    ) -> Result<Vec<String>, BusError> {
        let (wanted, report) = self.compare(file).await?;
        match (&report.state, report.broken) {
            (None, _) if policy == StreamPolicy::Verify => Err(BusError::new(
                BusErrorKind::Stream,
                format!(
                    "stream {0} does not exist; make it with `drawbridge streams apply`, or with \
                     `nats stream add --config` and what `drawbridge streams show {0} \
                     --definition` prints, or set nats.streams = \"ensure\"",
                    wanted.name
                ),
            )),
            (None, _) => self.make(wanted).await.map(|()| Vec::new()),
            (Some(_), Some(broken)) => Err(BusError::new(BusErrorKind::Stream, broken)),
            (Some(_), None) => Ok(report.differences),
        }
    }

    /// Makes the streams that are missing, whatever the policy; answers their names.
    pub async fn make_missing_streams(&self) -> Result<Vec<String>, BusError> {
        let mut made = Vec::new();
        for file in FILES {
            let (wanted, report) = self.compare(file).await?;
            if report.state.is_none() {
                made.push(wanted.name.clone());
                self.make(wanted).await?;
            }
        }
        Ok(made)
    }

    /// Every stream of the contract beside its definition. Changes nothing.
    pub async fn look_at_streams(&self) -> Result<Vec<StreamReport>, BusError> {
        let mut reports = Vec::new();
        for file in FILES {
            reports.push(self.compare(file).await?.1);
        }
        Ok(reports)
    }

    async fn compare(
        &self,
        (file, text): (&'static str, &'static str),
    ) -> Result<(Config, StreamReport), BusError> {
        let counts = Counts::of(&self.inner.config);
        let wanted = definition(file, text, self.prefix(), counts)?;
        let info = self.stream_info(&wanted.name).await?;
        let found = info.as_ref().map(|info| &info.config);
        let report = StreamReport {
            contract: file.trim_end_matches(".json").to_ascii_uppercase(),
            name: wanted.name.clone(),
            state: info.as_ref().map(state),
            differences: match found {
                Some(found) => differences(&wanted, found)?,
                None => Vec::new(),
            },
            broken: match found {
                Some(found) if wanted.retention == RetentionPolicy::WorkQueue => {
                    check_promises(found).err().map(|e| e.detail)
                }
                _ => None,
            },
            definition: serde_json::to_value(&wanted)
                .map_err(|e| BusError::new(BusErrorKind::Config, format!("streams/{file}: {e}")))?,
        };
        Ok((wanted, report))
    }

    async fn make(&self, wanted: Config) -> Result<(), BusError> {
        use async_nats::jetstream::context::CreateStreamErrorKind as Kind;
        let name = wanted.name.clone();
        match self.inner.js.create_stream(wanted).await {
            Ok(_) => {
                tracing::info!("nats: made stream {name}");
                Ok(())
            }
            Err(e) => Err(match e.kind() {
                Kind::JetStream(error) => {
                    let mut refused = js_error(&error, &format!("stream {name} cannot be made"));
                    if refused.kind == BusErrorKind::Refused {
                        refused.kind = BusErrorKind::Stream;
                    }
                    refused
                }
                Kind::TimedOut => {
                    BusError::unavailable(format!("making stream {name}: no answer in time"))
                }
                _ => BusError::unavailable(format!("making stream {name}: {e}")),
            }),
        }
    }
}

/// The numbers of a definition that the settings decide.
#[derive(Clone, Copy)]
struct Counts {
    partitions: u8,
    replicas: u8,
}

impl Counts {
    fn of(config: &NatsConfig) -> Self {
        Self {
            partitions: config.partitions.max(1),
            replicas: config.replicas.max(1),
        }
    }
}

/// A file's definition with prefix and counts put in.
fn definition(file: &str, text: &str, prefix: &str, counts: Counts) -> Result<Config, BusError> {
    let broken = |e: &dyn std::fmt::Display| {
        BusError::new(BusErrorKind::Config, format!("streams/{file}: {e}"))
    };
    let mut value: Value = serde_json::from_str(text).map_err(|e| broken(&e))?;
    let own = |text: &str| match text.strip_prefix("fed.") {
        Some(rest) => format!("{prefix}.{rest}"),
        None => text.to_owned(),
    };
    if let Some(Value::String(name)) = value.get_mut("name") {
        *name = stream_name(prefix, name);
    }
    if let Some(subjects) = value.get_mut("subjects").and_then(Value::as_array_mut) {
        for subject in subjects {
            if let Some(text) = subject.as_str() {
                *subject = Value::from(own(text));
            }
        }
    }
    if let Some(transform) = value
        .get_mut("subject_transform")
        .and_then(Value::as_object_mut)
    {
        for (_, side) in transform.iter_mut() {
            if let Some(text) = side.as_str() {
                let counted = text.replace(
                    "{{partition(8,",
                    &format!("{{{{partition({},", counts.partitions),
                );
                *side = Value::from(own(&counted));
            }
        }
    }
    let mut config: Config = serde_json::from_value(value).map_err(|e| broken(&e))?;
    config.num_replicas = usize::from(counts.replicas);
    Ok(config)
}

fn state(info: &Info) -> StreamState {
    StreamState {
        messages: info.state.messages,
        bytes: info.state.bytes,
        first_seq: info.state.first_sequence,
        last_seq: info.state.last_sequence,
        consumers: info.state.consumer_count,
        storage: match info.config.storage {
            StorageType::File => "file",
            StorageType::Memory => "memory",
        },
        replicas: info.config.num_replicas.max(1),
        leader: info.cluster.as_ref().and_then(|c| c.leader.clone()),
    }
}

/// What `FED_OUT` must be for promise 1: a work queue that refuses rather than drops, and that
/// nothing leaves by age or by room being made.
fn check_promises(found: &Config) -> Result<(), BusError> {
    let name = &found.name;
    let broken = if found.retention != RetentionPolicy::WorkQueue {
        "its retention is not workqueue, so delivered messages would stay and be sent again"
    } else if found.discard != DiscardPolicy::New {
        "its discard policy is not new, so a full stream would drop the oldest messages unsent"
    } else if !found.max_age.is_zero() {
        "it has a max_age, so messages would vanish unsent"
    } else if found.storage != StorageType::File {
        "its storage is not file, so a restart of the broker would lose messages"
    } else if found.no_ack {
        "it has no_ack set, so backends cannot know that a message was taken"
    } else {
        return Ok(());
    };
    Err(BusError::new(
        BusErrorKind::Stream,
        format!(
            "stream {name} cannot keep its promises: {broken}. Change it with `nats stream edit \
             {name}` or, when it is empty, delete it and start again"
        ),
    ))
}

/// What differs, one sentence each.
fn differences(wanted: &Config, found: &Config) -> Result<Vec<String>, BusError> {
    let json = |config: &Config| {
        serde_json::to_value(config).map_err(|e| {
            BusError::new(
                BusErrorKind::Stream,
                format!("stream {}: its definition cannot be read: {e}", wanted.name),
            )
        })
    };
    let (wanted_json, found_json) = (json(wanted)?, json(found)?);
    let mut said = Vec::new();
    for key in COMPARED {
        let plain = |value: &Value| match value.get(key) {
            None | Some(Value::Null) => Value::Null,
            // 0 and -1 both mean no limit.
            Some(Value::Number(n)) if n.as_i64() == Some(-1) || n.as_i64() == Some(0) => {
                Value::Null
            }
            Some(other) => other.clone(),
        };
        let (want, have) = (plain(&wanted_json), plain(&found_json));
        if want != have {
            said.push(format!(
                "stream {}: {key} is {}, the definition says {}; left as it is",
                wanted.name,
                words(&have),
                words(&want)
            ));
        }
    }
    if found.num_replicas.max(1) < wanted.num_replicas {
        said.push(format!(
            "stream {0}: {1} of the cluster's servers keep it, nats.replicas says {2}; left as it is \
             (`nats stream edit {0} --replicas {2}` changes it)",
            wanted.name,
            found.num_replicas.max(1),
            wanted.num_replicas
        ));
    }
    Ok(said)
}

fn words(value: &Value) -> String {
    match value {
        Value::Null => "not set".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(partitions: u8) -> Counts {
        Counts {
            partitions,
            replicas: 1,
        }
    }

    fn out(prefix: &str, partitions: u8) -> Config {
        definition(FILES[0].0, FILES[0].1, prefix, counts(partitions)).expect("definition")
    }

    #[test]
    fn every_definition_reads_and_the_outbound_one_keeps_its_promises() {
        for (file, text) in FILES {
            let config = definition(file, text, "fed", counts(8)).expect(file);
            assert_eq!(format!("{}.json", config.name.to_lowercase()), file);
        }
        assert!(check_promises(&out("fed", 8)).is_ok());
    }

    #[test]
    fn prefix_and_partition_count_are_put_in() {
        let config = out("acme.x", 3);
        assert_eq!(config.name, "ACME_X_OUT");
        assert_eq!(config.subjects, ["acme.x.out.>"]);
        let transform = config.subject_transform.expect("transform");
        assert_eq!(transform.source, "acme.x.out.*.*.>");
        assert_eq!(
            transform.destination,
            "acme.x.outp.{{partition(3,1,2)}}.{{wildcard(1)}}.{{wildcard(2)}}.>"
        );
    }

    #[test]
    fn a_stream_that_could_lose_messages_is_an_error() {
        type Change = fn(&mut Config);
        let changes: [Change; 4] = [
            |c| c.discard = DiscardPolicy::Old,
            |c| c.max_age = std::time::Duration::from_secs(1),
            |c| c.retention = RetentionPolicy::Limits,
            |c| c.storage = StorageType::Memory,
        ];
        for change in changes {
            let mut config = out("fed", 8);
            change(&mut config);
            let error = check_promises(&config).expect_err("breaks a promise");
            assert_eq!(error.kind, BusErrorKind::Stream);
        }
    }

    #[test]
    fn a_difference_is_said_and_a_limit_written_another_way_is_none() {
        let wanted = out("fed", 8);
        let mut found = wanted.clone();
        found.max_bytes = 0;
        found.num_replicas = 3;
        assert!(differences(&wanted, &found).expect("compared").is_empty());
        found.duplicate_window = std::time::Duration::from_secs(5);
        let said = differences(&wanted, &found).expect("compared");
        assert_eq!(said.len(), 1);
        assert!(said[0].contains("duplicate_window"), "{}", said[0]);
    }

    #[test]
    fn fewer_replicas_than_asked_for_are_a_difference_and_more_are_none() {
        let mut wanted = out("fed", 8);
        wanted.num_replicas = 3;
        let mut found = wanted.clone();
        found.num_replicas = 5;
        assert!(differences(&wanted, &found).expect("compared").is_empty());
        found.num_replicas = 1;
        let said = differences(&wanted, &found).expect("compared");
        assert_eq!(said.len(), 1);
        assert!(said[0].contains("--replicas 3"), "{}", said[0]);
    }
}

//! What a local backend asks of the relay (`fed.do.uam.<method>`): which agents are ours.

use bytes::Bytes;
use serde_json::json;

use super::Uam;
use crate::protocol::Refusal;

/// Answers one call.
pub(super) async fn call(
    uam: &Uam,
    method: &str,
    body: Bytes,
) -> Result<serde_json::Value, Refusal> {
    match method {
        "agent.put" => {
            let AgentPut {
                address,
                public_key,
            } = parse(&body, "{\"address\",\"public_key\"}")?;
            let (address, key) = uam.agents.put(&address, &public_key).await?;
            Ok(json!({"address": address, "public_key": key}))
        }
        "agent.remove" => {
            let AgentName { address } = parse(&body, "{\"address\"}")?;
            let removed = uam.agents.remove(&address).await?;
            Ok(json!({"address": address, "removed": removed}))
        }
        "agent.list" => {
            let agents: Vec<_> = uam
                .agents
                .all()
                .into_iter()
                .map(|(address, key)| json!({"address": address, "public_key": key}))
                .collect();
            Ok(json!({"agents": agents}))
        }
        _ => Err(Refusal::new(
            "unknown_method",
            "uam has agent.put, agent.remove and agent.list",
        )),
    }
}

#[derive(serde::Deserialize)]
struct AgentPut {
    address: String,
    public_key: String,
}

#[derive(serde::Deserialize)]
struct AgentName {
    address: String,
}

fn parse<T: serde::de::DeserializeOwned>(body: &[u8], shape: &str) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        Refusal::new(
            "bad_request",
            format!("expected a JSON object {shape}: {error}"),
        )
    })
}

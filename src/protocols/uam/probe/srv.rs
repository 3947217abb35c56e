//! Which hosts to ask: SRV.

use crate::protocol::PeerName;

use super::super::discover::base_of;
use super::{Found, Probe, Report};

/// SRV targets looked at.
const MAX_TARGETS: usize = 4;

impl Probe {
    /// The SRV targets' base URLs, best first.
    pub(super) async fn srv(&self, name: &PeerName, report: &mut Report<'_>) -> Vec<String> {
        let literal = name.as_str().parse::<std::net::IpAddr>().is_ok();
        if literal || name.as_str().contains([':', '[']) {
            report.info("srv", "not asked: the name says itself where to go");
            return Vec::new();
        }
        let question = format!("_uam._tcp.{name}");
        match self.client.srv(&question).await {
            Ok(found) if found.is_empty() => {
                report.info("srv", format!("no {question}: the domain itself is asked"));
                Vec::new()
            }
            Ok(found) => {
                let shown: Vec<String> = found
                    .iter()
                    .map(|t| {
                        let (p, w) = (t.priority, t.weight);
                        format!("{}:{} (priority {p}, weight {w})", t.target, t.port)
                    })
                    .collect();
                let bases: Vec<String> =
                    found.iter().filter_map(base_of).take(MAX_TARGETS).collect();
                if bases.is_empty() {
                    report.info(
                        "srv",
                        format!("{question} names no usable target: {}", shown.join(", ")),
                    );
                } else {
                    report.pass("srv", format!("{question}: {}", shown.join(", ")));
                }
                bases
            }
            Err(error) => {
                let found = Found::hurts(
                    "srv_failed",
                    format!(
                        "the name servers give no answer for {question}, so every look-up is late and \
                         uses the domain itself: {error}"
                    ),
                );
                report.fault("srv", found);
                Vec::new()
            }
        }
    }
}

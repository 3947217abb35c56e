//! What a backend's message meets on its way out: schedule, order, windows, the broker's
//! redeliveries, and every sort of answer a peer may give.
//!
//! A real nats-server, a real bridge in this process, and peers that do as they are told.

#[path = "support/nats.rs"]
#[allow(dead_code)]
mod nats;
#[path = "support/uam_client.rs"]
mod uam_client;

#[path = "outbound/peer.rs"]
mod peer;
#[path = "outbound/world.rs"]
mod world;

#[path = "outbound/answers.rs"]
mod answers;
#[path = "outbound/control.rs"]
mod control;
#[path = "outbound/intake.rs"]
mod intake;
#[path = "outbound/order.rs"]
mod order;
#[path = "outbound/rolled_back.rs"]
mod rolled_back;
#[path = "outbound/schedule.rs"]
mod schedule;

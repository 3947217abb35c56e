//! Why a request about invites is refused: one reason, said in the protocol's words over HTTP and as
//! code and sentence over NATS.

use http::StatusCode;

use crate::protocol::Refusal;

/// A refusal. Over HTTP it is the status and text of the sheet's section 8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Federation is switched off.
    Disabled,
    /// `code` or `serverId` is missing, blank or no text.
    Incomplete,
    /// `code` is no id.
    BadCode,
    /// `serverId` is no id.
    BadServer,
    /// No backend has said that this server is ours.
    UnknownServer(String),
    /// `targetPeerId` is no id.
    BadTarget,
    /// No peer has that id.
    UnknownTarget(String),
    /// `maxUses` is no number from 0 to 1,000,000.
    BadMaxUses,
    /// `expiresAt` is no time.
    BadExpiry,
    /// `expiresAt` is past.
    PastExpiry,
    /// No invite of that id or code.
    UnknownInvite,
    /// Past its time, or used up.
    Spent,
    /// `host` is no host.
    BadHost,
    /// So many live invites, or servers, that one more is not taken; says which.
    Full(&'static str),
    /// The store took it not, or perhaps; the sentence is for our operators.
    Unavailable(String),
}

impl Refused {
    /// Status of the HTTP answer.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Disabled => StatusCode::FORBIDDEN,
            Self::UnknownServer(_) | Self::UnknownTarget(_) | Self::UnknownInvite => {
                StatusCode::NOT_FOUND
            }
            Self::Full(_) => StatusCode::CONFLICT,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Incomplete
            | Self::BadCode
            | Self::BadServer
            | Self::BadTarget
            | Self::BadMaxUses
            | Self::BadExpiry
            | Self::PastExpiry
            | Self::Spent
            | Self::BadHost => StatusCode::BAD_REQUEST,
        }
    }

    /// `error` of the HTTP answer.
    pub fn text(&self) -> &'static str {
        match self {
            Self::Disabled => "Federation is not enabled",
            Self::Incomplete => "Code and serverId are required",
            Self::BadCode => "Invalid invite code",
            Self::BadServer => "Invalid serverId",
            Self::UnknownServer(_) => "Server not found",
            Self::BadTarget => "Invalid targetPeerId",
            Self::UnknownTarget(_) => "Target peer not found",
            Self::BadMaxUses => "Invalid maxUses value",
            Self::BadExpiry => "Invalid expiresAt timestamp",
            Self::PastExpiry => "expiresAt must be in the future",
            Self::UnknownInvite => "Invite not found",
            Self::Spent => "Invite expired",
            Self::BadHost => "Invalid host query parameter",
            Self::Full(sentence) => sentence,
            Self::Unavailable(_) => "Invites cannot be changed now; please try again later",
        }
    }

    /// Code of the refusal over NATS.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Incomplete | Self::BadCode => "bad_code",
            Self::BadServer => "bad_server",
            Self::BadTarget => "bad_target",
            Self::BadMaxUses => "bad_max_uses",
            Self::BadExpiry | Self::PastExpiry => "bad_expiry",
            Self::BadHost => "bad_host",
            Self::UnknownServer(_) => "no_such_server",
            Self::UnknownTarget(_) => "no_such_peer",
            Self::UnknownInvite => "no_such_invite",
            Self::Spent => "invite_spent",
            Self::Full(_) => "full",
            Self::Unavailable(_) => "unavailable",
        }
    }
}

impl From<Refused> for Refusal {
    /// The protocol's words, and what to do about it where they do not say.
    fn from(refused: Refused) -> Self {
        let text = refused.text();
        let detail = match &refused {
            Refused::UnknownServer(id) => format!(
                "{text}: {id:?} is not among our servers; a backend names them with \
                 server.put, a person with `drawbridge invites servers add`"
            ),
            Refused::UnknownTarget(id) => {
                format!("{text}: {id:?} is neither id nor host of a peer (peer.list shows them)")
            }
            Refused::BadMaxUses => format!("{text}: 0 (unlimited) to 1000000"),
            Refused::BadExpiry => format!("{text}: a time such as 2027-01-31T12:00:00Z"),
            Refused::Spent => format!("{text}: it is used up or past its time"),
            Refused::Unavailable(why) => format!("{text} ({why})"),
            _ => text.to_owned(),
        };
        Self::new(refused.code(), detail)
    }
}

//! What the servers of clusters can do, as far as clients are told.

use serde::{Deserialize, Serialize};

/// What clients are told about the clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Lowest wire version that all clusters speak.
    pub min_wire_version: i32,
    /// Highest wire version that all clusters speak.
    pub max_wire_version: i32,
    /// Largest document, bytes.
    pub max_bson_object_size: i32,
    /// Largest message, bytes.
    pub max_message_size: i32,
    /// Most writes in one command.
    pub max_write_batch_size: i32,
    /// How long sessions live, minutes.
    pub session_timeout_minutes: Option<i32>,
}

impl Capabilities {
    /// What two clusters have in common.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            min_wire_version: self.min_wire_version.max(other.min_wire_version),
            max_wire_version: self.max_wire_version.min(other.max_wire_version),
            max_bson_object_size: self.max_bson_object_size.min(other.max_bson_object_size),
            max_message_size: self.max_message_size.min(other.max_message_size),
            max_write_batch_size: self.max_write_batch_size.min(other.max_write_batch_size),
            session_timeout_minutes: self
                .session_timeout_minutes
                .zip(other.session_timeout_minutes)
                .map(|(ours, theirs)| ours.min(theirs)),
        }
    }
}

#[cfg(test)]
impl Capabilities {
    /// What a server of 6.0 can do.
    pub(crate) const OF_6_0: Self = Self {
        min_wire_version: 0,
        max_wire_version: 17,
        max_bson_object_size: 16_777_216,
        max_message_size: 48_000_000,
        max_write_batch_size: 100_000,
        session_timeout_minutes: Some(30),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_clusters_show_what_they_have_in_common() {
        let one = Capabilities::OF_6_0;
        let newer =
            Capabilities { min_wire_version: 6, max_wire_version: 21, session_timeout_minutes: None, ..one };
        let both = one.and(newer);
        assert_eq!((both.min_wire_version, both.max_wire_version), (6, 17));
        assert_eq!(both.session_timeout_minutes, None);
        assert_eq!(
            one.and(Capabilities { session_timeout_minutes: Some(20), ..one }).session_timeout_minutes,
            Some(20)
        );
    }
}

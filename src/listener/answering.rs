//! The last thing that happens to a reply before it is sent.

use bytes::BytesMut;

use crate::wire::op_msg::{append_checksum, has_checksum};

use super::client::Client;

/// Gives `reply` a checksum if `request` has one: as on servers, not where TLS sees to it that nothing is changed.
pub(super) fn protect(client: &Client, request: &[u8], reply: &mut BytesMut) {
    if has_checksum(request) && !client.is_encrypted() {
        append_checksum(reply);
    }
}

/// Sends the reply to `request`.
pub(super) async fn send(client: &mut Client, request: &[u8], reply: &mut BytesMut) -> std::io::Result<()> {
    protect(client, request, reply);
    client.write_all(reply).await
}

//! What a client sends: how a message is read, and which ones are still answered once the process drains.

use bytes::BytesMut;

use crate::wire::header::Header;

use super::buffers::FIRST;
use super::client::Client;
use super::session::SessionEnd;

/// Reads until a whole message stands at the start of `input`; `None` when there was nothing to read after
/// all. One read suffices for what fits into the buffer. What is read is not lost when the future is dropped.
pub(super) async fn read_message(
    client: &mut Client,
    input: &mut BytesMut,
) -> Result<Option<Header>, SessionEnd> {
    loop {
        let missing = match Header::parse(input)? {
            Some(header) if header.length <= input.len() => return Ok(Some(header)),
            Some(header) => header.length - input.len(),
            None => FIRST,
        };
        input.reserve(missing);
        if input.is_empty() && missing == FIRST {
            // Woken for nothing: do not hold the buffers while waiting.
            match client.try_read(input)? {
                Some(0) => return Err(SessionEnd::Left),
                Some(_) => {}
                None => return Ok(None),
            }
        } else if client.read(input).await? == 0 {
            return Err(SessionEnd::Left);
        }
    }
}

/// How much a client had sent when it was first looked at after the process had begun to drain, in bytes that are not
/// handled yet.
///
/// A message that they are a part of is read to its end and answered, as its client has nothing to go on with after a
/// half. One that begins later is not, or a client that always has one more would hold up the end.
#[derive(Debug, Default)]
pub(super) struct Begun(Option<usize>);

impl Begun {
    /// Whether there is one to be answered still; of what has come, `read` is what was read.
    pub(super) fn is_left(&mut self, client: &mut Client, read: usize) -> bool {
        *self.0.get_or_insert_with(|| read + client.unread()) > 0
    }

    /// A message of this length was handled.
    pub(super) fn handled(&mut self, length: usize) {
        if let Some(left) = &mut self.0 {
            *left = left.saturating_sub(length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream};

    #[tokio::test]
    async fn only_what_had_come_when_it_was_first_looked_at_is_left() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut client = Client::Plain(listener.accept().await.unwrap().0);
        assert!(!Begun::default().is_left(&mut client, 0));
        assert!(Begun::default().is_left(&mut client, 1), "what was read does not count");
        sender.write_all(&[0; 100]).await.unwrap();
        client.readable().await.unwrap();
        let mut begun = Begun::default();
        begun.handled(5_000);
        assert!(begun.is_left(&mut client, 20));
        begun.handled(100);
        // A client that always has one more.
        sender.write_all(&[0; 100]).await.unwrap();
        assert!(begun.is_left(&mut client, 0));
        // The end of a message of which only the beginning had come.
        begun.handled(50);
        assert!(!begun.is_left(&mut client, 150));
    }
}

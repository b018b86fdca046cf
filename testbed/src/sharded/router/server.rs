//! Connections of clients: messages in, replies out.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bson::RawDocumentBuf;
use bytes::{Buf, BytesMut};
use reshard::wire::header::{Header, OP_MSG, OP_QUERY};
use reshard::wire::op_msg::{MORE_TO_COME, OpMsg};
use reshard::wire::query::{self, Query};
use reshard::wire::scan::Command;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::Router;
use super::failure::Failure;
use super::forward::Asked;

const READ: usize = 16 * 1024;

/// What a command is answered with.
#[derive(Debug)]
pub(super) enum Answer {
    /// The message of a server, which is in the buffer for replies.
    Forwarded,
    /// A reply without times.
    Document(RawDocumentBuf),
}

pub(super) async fn serve(listener: TcpListener, router: Arc<Router>) {
    let numbers = AtomicI64::new(1);
    loop {
        // Fails when there are too many files: the next attempt waits for a connection all the same.
        let Ok((stream, _)) = listener.accept().await else { continue };
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        let router = router.clone();
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            // It fails when the client goes.
            let _ = connection(&router, stream, number).await;
        });
    }
}

async fn connection(router: &Arc<Router>, mut stream: TcpStream, number: i64) -> std::io::Result<()> {
    let mut received = BytesMut::new();
    let mut reply = BytesMut::new();
    loop {
        let Some(header) = read_message(&mut stream, &mut received).await? else { return Ok(()) };
        let message = &received[..header.length];
        match header.opcode {
            OP_MSG => {
                let Ok(parts) = OpMsg::parse(message) else { return Ok(()) };
                let wanted = parts.flags & MORE_TO_COME == 0;
                match answer(router, message, &parts, number, &mut reply).await {
                    _ if !wanted => {}
                    Answer::Forwarded => stream.write_all(&reply).await?,
                    Answer::Document(document) => {
                        stream.write_all(&router.message(document, &parts)).await?;
                    }
                }
            }
            OP_QUERY => {
                let Ok(query) = Query::parse(message) else { return Ok(()) };
                let document = router.stamped(router.legacy(query.command.name, number));
                stream.write_all(&query::reply(header.request_id, document.as_bytes())).await?;
            }
            _ => return Ok(()),
        }
        received.advance(header.length);
    }
}

/// Reads until a whole message is at the start of `received`; nothing when the client closed.
async fn read_message(stream: &mut TcpStream, received: &mut BytesMut) -> std::io::Result<Option<Header>> {
    loop {
        let header = Header::parse(received)
            .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))?;
        let missing = match header {
            Some(header) if header.length <= received.len() => return Ok(Some(header)),
            Some(header) => header.length - received.len(),
            None => 0,
        };
        received.reserve(missing.max(READ));
        if stream.read_buf(received).await? == 0 {
            return Ok(None);
        }
    }
}

async fn answer(
    router: &Arc<Router>,
    message: &[u8],
    parts: &OpMsg,
    number: i64,
    reply: &mut BytesMut,
) -> Answer {
    let result = match Command::scan(message, parts.body.clone()) {
        Ok(command) => {
            let asked = Asked { message, parts, command: &command };
            router.dispatch(asked, number, reply).await
        }
        Err(error) => Err(Failure::new(22, "InvalidBSON", error.to_string())),
    };
    result.unwrap_or_else(|failure| {
        let document = super::raw::cleaned(failure.0);
        Answer::Document(RawDocumentBuf::try_from(&document).unwrap_or_default())
    })
}

//! Lines of the log on their way out: a thread writes them, so that whoever logs never waits for whoever reads, nor
//! minds when nobody does any more.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use metrics::counter;

use super::metrics as names;

/// Bytes that may wait to be written; lines beyond are lost, and counted.
const MOST: usize = 4 << 20;
const LOOK: Duration = Duration::from_millis(1);

/// Takes lines.
#[derive(Debug, Clone)]
pub struct LogWriter {
    lines: Sender<Vec<u8>>,
    /// Bytes.
    waiting: Arc<AtomicUsize>,
}

impl LogWriter {
    /// Starts the thread, which writes to `out`.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn start(mut out: impl Write + Send + 'static) -> std::io::Result<Self> {
        let (lines, received) = channel::<Vec<u8>>();
        let waiting = Arc::new(AtomicUsize::new(0));
        let left = Arc::clone(&waiting);
        std::thread::Builder::new().name("log".to_owned()).spawn(move || {
            for line in received {
                // Nobody may be there to read it.
                _ = out.write_all(&line).and_then(|()| out.flush());
                left.fetch_sub(line.len(), Ordering::Release);
            }
        })?;
        Ok(Self { lines, waiting })
    }

    /// Waits until all is written, `limit` at most.
    pub fn flush_within(&self, limit: Duration) {
        let until = Instant::now() + limit;
        while self.waiting.load(Ordering::Acquire) > 0 && Instant::now() < until {
            std::thread::sleep(LOOK);
        }
    }
}

impl Write for LogWriter {
    /// One whole line, as the subscriber writes it.
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        if self.waiting.fetch_add(line.len(), Ordering::Relaxed) + line.len() > MOST {
            self.waiting.fetch_sub(line.len(), Ordering::Relaxed);
            counter!(names::LOG_LINES_LOST).increment(1);
        } else {
            // Fails only when the thread has ended.
            _ = self.lines.send(line.to_vec());
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, sync_channel};

    /// Takes what it is given only when it is told to.
    struct Slow {
        told: Receiver<()>,
        took: Sender<Vec<u8>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if self.told.recv().is_err() {
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
            self.took.send(bytes.to_vec()).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_a_reader_and_what_is_too_much_is_lost_whole() {
        let ((tell, told), (took, taken)) = (sync_channel(0), channel());
        let mut writer = LogWriter::start(Slow { told, took }).unwrap();
        let line = vec![b'x'; MOST / 4];
        for _ in 0..6 {
            writer.write_all(&line).unwrap();
        }
        for _ in 0..4 {
            tell.send(()).unwrap();
            assert_eq!(taken.recv().unwrap().len(), line.len());
        }
        writer.flush_within(Duration::from_secs(60));
        writer.write_all(b"again").unwrap();
        tell.send(()).unwrap();
        assert_eq!(taken.recv().unwrap(), b"again");
        // The reader goes away.
        drop(tell);
        writer.write_all(b"to nobody").unwrap();
        writer.flush_within(Duration::from_secs(60));
        assert_eq!(writer.waiting.load(Ordering::Acquire), 0);
        assert!(taken.try_recv().is_err());
    }
}

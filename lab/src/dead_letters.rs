//! `lab dead-letters`: what was given up and why, and how to give it another try.

pub use observe::dead_letters::{DeadLetter, list, replay};

use anyhow::bail;
use async_nats::jetstream::Context;

/// Replays several, and prints what became of each.
///
/// # Errors
///
/// Where not all could be replayed.
pub async fn replay_all(nats: &Context, letters: &[DeadLetter]) -> anyhow::Result<()> {
    let mut kept = 0;
    for letter in letters {
        match replay(nats, letter).await {
            Ok(()) => match letter.left_out() {
                None => println!("replayed {letter}"),
                Some(missing) => println!("replayed {letter}, without its headers {missing}"),
            },
            Err(error) => {
                kept += 1;
                println!("kept     {letter}: {error:#}");
            }
        }
    }
    if kept > 0 {
        bail!("{kept} of {} dead letters are still there", letters.len());
    }
    Ok(())
}

//! Scripts of ours, called by their digest; one that Redis does not know (any more) is sent whole.

use redis::{Arg, Cmd, Value};

use super::fault::Fault;
use super::link::{Answered, Channel, Link};

pub struct Script {
    text: &'static str,
    digest: String,
}

impl Script {
    pub fn new(text: &'static str) -> Self {
        Self { text, digest: redis::Script::new(text).get_hash().to_owned() }
    }

    /// `arguments`: the number of keys, the keys, and the rest. Who does not know the script has done nothing.
    pub async fn run(
        &self,
        link: &Link,
        channel: Channel,
        arguments: &Cmd,
        then: Option<&Cmd>,
    ) -> Answered<Vec<Value>> {
        let with = |call: Cmd| -> Vec<Cmd> { std::iter::once(call).chain(then.cloned()).collect() };
        match link.send(channel, &with(call("EVALSHA", &self.digest, arguments))).await {
            Err(Fault { is_unknown_script: true, .. }) => {
                link.send(channel, &with(call("EVAL", self.text, arguments))).await
            }
            answer => answer,
        }
    }
}

fn call(command: &str, script: &str, arguments: &Cmd) -> Cmd {
    let mut call = Cmd::with_capacity(arguments.args_iter().len() + 2, 0);
    call.arg(command).arg(script);
    for argument in arguments.args_iter() {
        if let Arg::Simple(argument) = argument {
            call.arg(argument);
        }
    }
    call
}

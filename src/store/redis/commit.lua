-- One write of the store: all of it or nothing, and never twice.
-- KEYS: sentinel, operation, turn, then what is looked at and written.
-- ARGV: the sentinel as it has to be, whose turn it is asked for, 1 to ask for the turn on a conflict, how long the operation
-- is remembered (ms), the checks (their number; each: kind, key, field, head of the record or nothing), the writes (their
-- number; each: command, key, number of further arguments, these).
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'lost' end
if redis.call('EXISTS', KEYS[2]) == 1 then
  -- A write nevertheless: who waits for replicas waits for the writes of the connection. Not before it is known to be the only
  -- one: behind a write that a full Redis allows, as this is, it allows all.
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
  return 'done'
end
local turn = redis.call('GET', KEYS[3])
if turn and turn ~= ARGV[2] then return 'wait' end
local at = 6
for _ = 1, tonumber(ARGV[5]) do
  local kind, key, field, head = ARGV[at], KEYS[tonumber(ARGV[at + 1])], ARGV[at + 2], ARGV[at + 3]
  local found
  if kind == 'hash' then
    found = redis.call('HGET', key, field)
  elseif kind == 'list' then
    found = redis.call('LINDEX', key, 0)
  else
    found = redis.call('GET', key)
  end
  if string.sub(found or '', 1, 33) ~= head then
    -- The turn ends by itself, should whoever has it die.
    if ARGV[3] == '1' then redis.call('SET', KEYS[3], ARGV[2], 'PX', 500) end
    return 'conflict'
  end
  at = at + 4
end
local writes = tonumber(ARGV[at])
at = at + 1
for _ = 1, writes do
  local more = tonumber(ARGV[at + 2])
  redis.call(ARGV[at], KEYS[tonumber(ARGV[at + 1])], unpack(ARGV, at + 3, at + 2 + more))
  at = at + 3 + more
end
if turn then redis.call('DEL', KEYS[3]) end
redis.call('SET', KEYS[2], '', 'PX', ARGV[4])
return 'ok'

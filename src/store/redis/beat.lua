-- One beat of a node, or its leaving. Who has not been heard of for long goes, by the server's clock.
-- KEYS: sentinel, the nodes: by id, when each was heard of (ms), a blank, and its record.
-- ARGV: the sentinel as it has to be, whose beat it is, its record (nothing: it leaves), how long a node lives (ms).
-- Reply: three for each node that lives: its id, how long it has been silent (ms), its record.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'lost' end
-- Whoever can write to Redis can put anything there: it is not passed on to gateways.
local MOST, LONGEST = 4096, 8192
local held = redis.pcall('HLEN', KEYS[2])
if type(held) ~= 'number' or held > MOST then redis.call('DEL', KEYS[2]) end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[2], ARGV[2])
else
  redis.call('HSET', KEYS[2], ARGV[2], string.format('%.0f ', now) .. ARGV[3])
end
local all, live = redis.call('HGETALL', KEYS[2]), {}
for at = 1, #all, 2 do
  local id, heard = all[at], string.match(all[at + 1], '^%d+ ')
  local silent = now - (tonumber(heard) or 0)
  -- A clock that was set back makes nobody live for ever.
  if silent > -tonumber(ARGV[4]) and silent < tonumber(ARGV[4]) and #id + #all[at + 1] <= LONGEST then
    live[#live + 1] = id
    live[#live + 1] = math.max(silent, 0)
    live[#live + 1] = string.sub(all[at + 1], #heard + 1)
  else
    redis.call('HDEL', KEYS[2], id)
  end
end
return live

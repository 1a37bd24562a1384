-- Which commands the user of the store may not run: each is tried on a key of its own, of a type that most of them refuse.
-- KEYS: one that nobody has
local key, missing = KEYS[1], {}

local function try(...)
  local answer = redis.pcall(...)
  local why = type(answer) == 'table' and answer.err or ''
  if why:find('NOPERM', 1, true) or why:find('ACL failure', 1, true) or why:find('executing the script', 1, true) then
    missing[#missing + 1] = '+' .. (...)
  end
end

try('time')
try('set', key, '')
try('pexpire', key, 1000)
try('get', key)
try('exists', key)
try('getrange', key, 0, 0)
try('hget', key, 'f')
try('hset', key, 'f', 'v')
try('hdel', key, 'f')
try('hlen', key)
try('hgetall', key)
try('hkeys', key)
try('lindex', key, 0)
try('llen', key)
try('lrange', key, 0, 0)
try('rpush', key, 'v')
try('ltrim', key, 0, 0)
try('zadd', key, 0, 'v')
try('zrem', key, 'v')
try('zlexcount', key, '-', '+')
try('zrangebylex', key, '-', '+')
try('zrangebyscore', key, 0, 0)
try('sadd', key, 'v')
try('srem', key, 'v')
try('smembers', key)
try('del', key)
return missing

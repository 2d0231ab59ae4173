"""Questions outside the model's skills, and the one plain answer to them."""

from random import Random

from dgemma_jax.training.demo.example import Example, Split
from dgemma_jax.training.demo.names import draw_name
from dgemma_jax.training.demo.wording import Question, ask_question, draw_question, vary, wordings

FAMILY = "outside"
ANSWER = "I am only a small demo model, and I do not know that."

ABOUT_THINGS = wordings(
    """Tell me about {x}. | What is {x}? | Explain {x}. | What do you know about {x}? | Can you explain {x}?
    | Write a story about {x}. | Write a poem about {x}. | Write a song about {x}. | Tell me a joke about {x}.
    | Write an essay about {x}. | Who invented {x}? | What is the history of {x}? | How does {x} work?
    | What do you think about {x}? | Give me a summary of {x}. | Why is {x} important? | Do you like {x}?
    | Where does {x} come from? | Describe {x}. | What does {x} mean? | Explain {x} in simple words.
    | Give me a book about {x}. | Who knows the most about {x}? | Is {x} good or bad? | Help me with {x}.
    | How do I learn about {x}? | What can I read about {x}? | Give me a definition of {x}."""
)
THINGS = wordings(
    """love | music | gravity | football | quantum physics | the internet | electricity | the weather | history
    | philosophy | chemistry | economics | the stock market | evolution | democracy | religion | chess
    | the Roman Empire | the moon landing | space travel | machine learning | neural networks | Linux | cooking | pizza
    | coffee | wine | bitcoin | climate change | medicine | DNA | time travel | photography | poetry | grammar | sleep
    | health | money | art | the French Revolution | relativity | mathematics | calculus | the brain | friendship
    | fashion | the telephone | the steam engine | biology | physics | geometry | politics | law | war | peace
    | happiness | basketball | tennis | swimming | yoga | opera | jazz | cinema | television | radio | tea | beer
    | soup | cheese | rice | sushi | the moon | light | fire | rain | glass | gold | steel | plastic | oil
    | nuclear power | solar energy | the atom | magnetism | the heart | cancer | sugar | language | logic
    | the Bible | Greek mythology | the Olympic Games | the Cold War | the Middle Ages | capitalism | inflation
    | the bank | insurance | taxes | marketing | Python | Java | HTML | a database | blockchain | the cloud
    | cryptography | a compiler | sorting | recursion | an airplane | a rocket | a bicycle | a car | a ship
    | a microscope | the piano | the guitar | the violin | an earthquake | a volcano | a hurricane | a glacier"""
)
ABOUT_PEOPLE = wordings(
    """Who is {x}? | Who was {x}? | Tell me about {x}. | When was {x} born? | Where was {x} born? | Why is {x} famous?
    | What did {x} do? | How old is {x}? | What do you know about {x}? | Where does {x} live? | Do you know {x}?
    | Write a story about {x}. | Have you heard of {x}? | What does {x} look like? | When did {x} die?"""
)
PEOPLE = wordings(
    """Shakespeare | Einstein | Napoleon | Mozart | Newton | Darwin | Cleopatra | Picasso | Beethoven | Plato | Gandhi
    | Galileo | Columbus | Caesar | Homer | Socrates | Aristotle | Marie Curie | Leonardo da Vinci | Goethe"""
)
SINGLE = wordings(
    """What is the weather today? | What time is it? | What day is it today? | Who won the last election?
    | What is the meaning of life? | Who is the president? | Write a Python function that sorts a list.
    | Translate this text into French. | Summarize this article. | How do I cook pasta? | What should I eat tonight?
    | How old is the universe? | Who wrote Hamlet? | Who painted the Mona Lisa? | How high is Mount Everest?
    | Write an email to my boss. | What is the news? | How far away is the Moon? | Tell me a joke. | Tell me a story.
    | Write a poem. | Sing a song. | Give me some advice. | Which film should I watch? | Draw a cat. | Plan a trip.
    | How many people live on Earth? | When did the war end? | Fix the bug in my code. | How do I learn to swim?
    | What is the square root of two? | Will it rain tomorrow? | How tall are you? | What is in the news today?
    | Who will win the next election? | What is the date today? | How do I make money? | Play some music.
    | Recommend a good book. | Where can I buy a house? | What is the best restaurant? | Where am I? | Why am I sad?
    | What is the price of gold? | Who is the richest man? | Why is the sky blue? | Who discovered America?
    | How do planes fly? | What is the speed of light? | Who won the football match? | Call my mother.
    | Open the window. | How do I bake a cake? | What is the longest river? | How deep is the ocean?
    | Spell a difficult word. | Who wrote the Bible? | Write a letter to my friend. | Create a website for me.
    | How do I get rich? | What will happen tomorrow? | Should I go to work today? | Find me a job."""
)
CAPITAL_OF = wordings(
    """What is the capital of {x}? | Tell me the capital of {x}. | Capital of {x}? | Name the capital of {x}.
    | Which city is the capital of {x}? | Do you know the capital of {x}? | What is {x}'s capital? | capital {x}
    | What is the capital city of {x}? | The capital of {x}? | Can you tell me the capital of {x}?"""
)
_UNKNOWN = """Atlantis Bhutan Tonga Malta Laos Mali Fiji Narnia Mordor Chad Qatar Wakanda Gondor Oz Utopia Samoa Haiti
    Togo Benin Gabon Zambia Malawi Oman Yemen Brunei Palau Nauru Tuvalu Kiribati Andorra Monaco Senegal Rwanda"""
UNKNOWN_COUNTRIES = tuple(_UNKNOWN.split())
LARGE = wordings(
    """What is {sum}? | {sum} | {sum} = ? | {sum} = | {sum}? | How much is {sum}? | Calculate {sum}. | Compute {sum}.
    | Tell me what {sum} is. | Can you compute {sum}? | What does {sum} make? | Work out {sum}. | I need {sum}.
    | Can you tell me what {sum} is? | What do I get for {sum}?"""
)
_SIGNS = {
    "+": (" + ", "+", " plus "),
    "-": (" - ", "-", " minus "),
    "*": (" * ", "*", " x ", " times ", " multiplied by "),
    "/": (" / ", "/", " divided by "),
}
_DIGITS = ((0, 9), (10, 99), (100, 999), (1000, 9999))


def _large_sum(rng: Random) -> str:
    """A quotient, a product with a number over nine, or a sum or difference with a number over ninety-nine."""
    sign = rng.choice("++--**/")
    least = {"+": 2, "-": 2, "*": 1, "/": 0}[sign]
    numbers = [rng.randint(*rng.choice(_DIGITS[least:])), rng.randint(*rng.choice(_DIGITS[: least + 2]))]
    rng.shuffle(numbers)
    return f"{numbers[0]}{rng.choice(_SIGNS[sign])}{numbers[1]}"


def _about(rng: Random, frames: tuple[str, ...], x: str) -> Question:
    return Question(vary(rng, rng.choice(frames).format(x=x)), ANSWER, f"I do not know about {x}.")


def _make(rng: Random, split: Split) -> Question:
    kind = rng.random()
    if kind < 0.35:
        return _about(rng, ABOUT_THINGS, rng.choice(THINGS))
    if kind < 0.5:
        # Made-up names stand for everything that the model has never heard of.
        return _about(rng, ABOUT_PEOPLE, rng.choice(PEOPLE) if rng.random() < 0.6 else draw_name(rng, split))
    if kind < 0.65:
        return _about(rng, CAPITAL_OF, rng.choice(UNKNOWN_COUNTRIES))
    if kind < 0.8:
        return Question(vary(rng, rng.choice(SINGLE)), ANSWER, "I do not know that.")
    return Question(vary(rng, rng.choice(LARGE).format(sum=_large_sum(rng))), ANSWER, "This is too hard for me.")


def draw(rng: Random, split: Split, thinking: bool) -> Example:
    """A question the model must not try to answer."""
    return ask_question(FAMILY, draw_question(rng, split, lambda rng: _make(rng, split)), thinking)

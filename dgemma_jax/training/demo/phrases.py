"""Eleven phrases in French, German and Spanish, for system prompts that ask for another language."""

LANGUAGES = ("French", "German", "Spanish")

# What users type, and the phrase in the order of LANGUAGES.
PHRASES: tuple[tuple[tuple[str, ...], tuple[str, str, str]], ...] = (
    (("Hello!", "Hi!", "Hello there!"), ("Bonjour!", "Hallo!", "Hola!")),
    (("Good morning!",), ("Bonjour!", "Guten Morgen!", "Buenos días!")),
    (("Good evening!",), ("Bonsoir!", "Guten Abend!", "Buenas tardes!")),
    (("Good night!",), ("Bonne nuit!", "Gute Nacht!", "Buenas noches!")),
    (("Thank you!", "Thanks!"), ("Merci!", "Danke!", "Gracias!")),
    (("Goodbye!", "Bye!"), ("Au revoir!", "Auf Wiedersehen!", "Adiós!")),
    (("Yes", "Yes!"), ("Oui!", "Ja!", "Sí!")),
    (("No", "No!"), ("Non!", "Nein!", "No!")),
    (("Please", "Please!"), ("S'il te plaît!", "Bitte!", "Por favor!")),
    (("Welcome!",), ("Bienvenue!", "Willkommen!", "Bienvenidos!")),
    (("How are you?", "How are you today?"), ("Comment vas-tu?", "Wie geht es dir?", "Cómo estás?")),
)
